//! Little-endian fields, CRC32C and alignment. Pure functions; nothing here can fail on bad bytes.

/// CRC32C (Castagnoli, RFC 3720) of `bytes`, continued from `seed`. Zero is mapped to one, so
/// that a block of zeros never carries a valid checksum.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    match crc32c::crc32c_append(seed, bytes) {
        0 => 1,
        crc => crc,
    }
}

/// The next multiple of `align` at or above `value`; `align` is a power of two.
pub const fn align_up(value: u64, align: u64) -> u64 {
    debug_assert!(align.is_power_of_two());
    (value + align - 1) & !(align - 1)
}

/// Reads `N` bytes at `at`; zeros beyond the end, so callers check lengths first.
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        field.copy_from_slice(found);
    }
    field
}

/// A `u16` at `at`.
pub fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(take(bytes, at))
}

/// A `u32` at `at`.
pub fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

/// A `u64` at `at`.
pub fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

/// An `i64` at `at`.
pub fn get_i64(bytes: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(take(bytes, at))
}

/// Writes `field` at `at`; the caller owns enough room.
pub fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}
