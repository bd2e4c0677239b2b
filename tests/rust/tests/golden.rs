//! Stores of every format version that was ever shipped are still read, and version 1 is still
//! written byte for byte.
//!
//! `MILLRACE_GOLDEN_WRITE=1` writes the files of the current version anew; that is right only
//! before a version is released.

use std::{collections::BTreeMap, fs, path::PathBuf};

use millrace_core::{
    codec::crc32c,
    error::ErrorKind,
    io::MemoryDisk,
    wal::{builder::Builder, recovery::RecoveryMode},
};
use millrace_tests::store;

/// What the stores of version 1 hash to: CRC32C over names and bytes, in order.
const V1: [(&str, u32); 4] = [
    ("killed", 0x1dec_0245),
    ("closed", 0x30b7_9656),
    ("restarted", 0x0fd1_3b1f),
    ("recycled", 0x5791_3062),
];

fn stores() -> [(&'static str, Builder); 4] {
    [
        ("killed", store::killed()),
        ("closed", store::closed()),
        ("restarted", store::restarted()),
        ("recycled", store::recycled()),
    ]
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("golden/v1")
        .join(name)
}

/// Segments lie without their trailing zeros; `lengths` says how long they are.
fn load(name: &str) -> MemoryDisk {
    let disk = MemoryDisk::default();
    let lengths = fs::read_to_string(folder(name).join("lengths")).unwrap();
    for line in lengths.lines() {
        let (file, length) = line.split_once(' ').unwrap();
        let mut bytes = fs::read(folder(name).join(file)).unwrap();
        bytes.resize(length.parse().unwrap(), 0);
        disk.put(file, &bytes);
    }
    disk
}

fn save(name: &str, disk: &MemoryDisk) {
    fs::create_dir_all(folder(name)).unwrap();
    let mut lengths = String::new();
    for file in disk.names() {
        let bytes = disk.get(&file).unwrap();
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        fs::write(folder(name).join(&file), &bytes[..used]).unwrap();
        lengths += &format!("{file} {}\n", bytes.len());
    }
    fs::write(folder(name).join("lengths"), lengths).unwrap();
}

fn files(disk: &MemoryDisk) -> BTreeMap<String, Vec<u8>> {
    disk.names()
        .into_iter()
        .map(|name| (name.clone(), disk.get(&name).unwrap()))
        .collect()
}

fn hash(disk: &MemoryDisk) -> u32 {
    files(disk).iter().fold(0, |hash, (name, bytes)| {
        crc32c(crc32c(hash, name.as_bytes()), bytes)
    })
}

#[test]
fn version_1_is_written_byte_for_byte() {
    // The same calls give the same bytes as on the day the format was fixed.
    for ((name, builder), (_, expected)) in stores().iter().zip(V1) {
        if std::env::var_os("MILLRACE_GOLDEN_WRITE").is_some() {
            save(name, &builder.disk);
            eprintln!("(\"{name}\", {:#010x}),", hash(&builder.disk));
            continue;
        }
        assert_eq!(files(&load(name)), files(&builder.disk), "{name}");
        assert_eq!(hash(&builder.disk), expected, "{name}");
    }
}

#[test]
fn version_1_is_read() {
    // Every record of the stored files comes back, and reading changes nothing.
    for (name, builder) in stores() {
        let disk = load(name);
        let recovered = store::open(&disk, RecoveryMode::Strict).unwrap();
        let (records, error) = store::read(&disk, &recovered);
        assert!(error.is_none());
        let records: Vec<_> = records.into_iter().map(|(_, record)| record).collect();
        assert_eq!(records, builder.records, "{name}");
        assert_eq!(recovered.report.clean_close, name == "closed");
        assert_eq!(disk.changes(), 0);
    }
}

#[test]
fn a_version_to_come_is_refused_untouched() {
    // The first bytes of a header keep their meaning for ever, so this one can say no politely.
    let disk = load("killed");
    let file = "0000000000000002.log";
    disk.edit(file, |bytes| {
        bytes[8] = 99;
        let crc = crc32c(0, &bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    });
    let before = files(&disk);
    let error = store::open(&disk, RecoveryMode::Tail).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
    assert!(error.message().contains("99") && error.message().contains("version 1"));
    assert_eq!(files(&disk), before);
}
