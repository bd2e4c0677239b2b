//! A disk after a power cut: names and bytes, nothing pending. Cheap to copy and to start from.

use std::{path::Path, sync::Arc};

use super::{
    content::Content,
    random::{fingerprint, mix},
    volume::{Directory, Entry, Ino, Inode, Volume},
    world::World,
};

/// A disk after a power cut: names and bytes, nothing pending.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub(super) dirs: Vec<DirImage>,
}

#[derive(Debug, Clone)]
pub(super) struct DirImage {
    pub path: Arc<Path>,
    pub entries: Vec<(Arc<str>, Arc<Content>)>,
}

impl Image {
    /// Tells this image from others.
    pub fn fingerprint(&self) -> u64 {
        self.dirs.iter().fold(1, |sum, dir| {
            let place = fingerprint(dir.path.as_os_str().as_encoded_bytes());
            let names = dir.entries.iter().fold(0, |sum: u64, (name, content)| {
                sum.wrapping_add(mix(fingerprint(name.as_bytes()) ^ content.fingerprint()))
            });
            mix(sum ^ place).wrapping_add(mix(names))
        })
    }

    /// The files and their bytes, for messages and for tests that damage them.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &str, &Content)> {
        self.dirs.iter().flat_map(|dir| {
            let entries = dir.entries.iter();
            entries.map(|(name, content)| (&*dir.path, &**name, &**content))
        })
    }

    /// The same image with one file changed by `edit`; whether there is such a file.
    pub fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Content)) -> bool {
        let entries = self.dirs.iter_mut().flat_map(|dir| &mut dir.entries);
        let Some((_, content)) = entries.into_iter().find(|(known, _)| &**known == name) else {
            return false;
        };
        let content = Arc::make_mut(content);
        edit(content);
        content.cut(content.length());
        true
    }

    /// What everybody sees now, as if it all were durable.
    pub fn of_visible(world: &World) -> Self {
        let inodes = &world.volume.inodes;
        let dirs = world.volume.dirs.iter().map(|dir| DirImage {
            path: dir.path.clone(),
            entries: named(&dir.entries, |ino| inodes[ino].cache.clone()),
        });
        Self {
            dirs: dirs.collect(),
        }
    }

    pub(super) fn to_volume(&self) -> Volume {
        let mut volume = Volume::default();
        for dir in &self.dirs {
            let mut entries = Vec::with_capacity(dir.entries.len() + 2);
            for (name, content) in &dir.entries {
                entries.push((name.clone(), volume.inodes.len()));
                volume.inodes.push(Inode {
                    device: content.clone(),
                    cache: content.clone(),
                    ..Inode::default()
                });
            }
            volume.dirs.push(Directory {
                path: dir.path.clone(),
                is_durable: true,
                durable: entries.clone(),
                entries,
                pending: Vec::new(),
            });
        }
        volume
    }
}

pub(super) fn named(
    entries: &[Entry],
    content: impl Fn(Ino) -> Arc<Content>,
) -> Vec<(Arc<str>, Arc<Content>)> {
    let pairs = entries
        .iter()
        .map(|(name, ino)| (name.clone(), content(*ino)));
    pairs.collect()
}
