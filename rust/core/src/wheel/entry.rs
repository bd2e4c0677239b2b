//! Where timers live: a slab of entries in chunks, each with its generation.
//!
//! Entries are linked by index, so scheduling and cancelling move no memory. The slab grows by
//! chunks, never by copying everything; a chunk that becomes empty is given back.
//!
//! # Always true
//!
//! 1. A generation is given out once and never again, whatever becomes of the entry's place. So a
//!    key that outlived its timer matches nothing.
//! 2. A vacant place is handed out before the slab grows: memory never exceeds what the largest
//!    number of timers alive at once took, and falls with every chunk that becomes empty.

use super::level::NONE;

/// Entries of a chunk. Small enough to be given back often, large enough to cost nothing.
const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 10;
/// Chunks that an index can name, `NONE` left out.
const CHUNKS_MAX: usize = (1 << (u32::BITS - CHUNK_BITS)) - 1;

/// What `schedule` returns and `cancel` takes.
///
/// Packed, because there is one beside each timer: 12 bytes instead of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(Rust, packed(4))]
pub struct Key {
    generation: u64,
    index: u32,
}

impl Key {
    /// The entry's place, for whoever has just been given the key.
    #[inline]
    pub(super) fn index(self) -> u32 {
        self.index
    }
}

/// A timer, or a vacant place.
#[derive(Debug)]
pub struct Entry<T> {
    /// Which timer this is; zero for a vacant place.
    generation: u64,
    pub tick: u64,
    /// The neighbours in the slot's list; `next` of a vacant place leads to another one.
    pub next: u32,
    pub prev: u32,
    value: Option<T>,
}

impl<T> Entry<T> {
    /// What waits here.
    pub fn value(&self) -> Option<&T> {
        self.value.as_ref()
    }
}

#[derive(Debug)]
struct Chunk<T> {
    entries: Vec<Entry<T>>,
    /// Vacant place to be used next, `NONE` if there is none below `entries.len()`.
    vacant: u32,
    live: u32,
    /// Neighbours in the list of chunks with room, or of bare ones.
    next: u32,
    prev: u32,
}

impl<T> Chunk<T> {
    const BARE: Self = Self {
        entries: Vec::new(),
        vacant: NONE,
        live: 0,
        next: NONE,
        prev: NONE,
    };
}

/// All entries of a wheel.
#[derive(Debug)]
pub struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    /// First of the chunks in which a place is left.
    room: u32,
    /// First of the chunks whose memory was given back.
    bare: u32,
    live: usize,
    generation: u64,
}

impl<T> Slab<T> {
    pub const fn new() -> Self {
        Self {
            chunks: Vec::new(),
            room: NONE,
            bare: NONE,
            live: 0,
            generation: 0,
        }
    }

    /// How many timers live.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Bytes taken from the allocator.
    pub fn memory_bytes(&self) -> usize {
        let entries: usize = self.chunks.iter().map(|one| one.entries.capacity()).sum();
        entries * size_of::<Entry<T>>() + self.chunks.capacity() * size_of::<Chunk<T>>()
    }

    /// Finds a place for a timer. Its links are the caller's to set.
    #[inline]
    pub fn insert(&mut self, tick: u64, value: T) -> Key {
        if self.room == NONE {
            self.make_room();
        }
        let number = self.room;
        self.generation += 1;
        let generation = self.generation;
        let chunk = &mut self.chunks[number as usize];
        let entry = Entry {
            generation,
            tick,
            next: NONE,
            prev: NONE,
            value: Some(value),
        };
        let place = if chunk.vacant == NONE {
            chunk.entries.push(entry);
            chunk.entries.len() as u32 - 1
        } else {
            let place = chunk.vacant;
            let old = &mut chunk.entries[place as usize];
            chunk.vacant = old.next;
            *old = entry;
            place
        };
        chunk.live += 1;
        self.live += 1;
        if chunk.live as usize == CHUNK {
            self.leave_room(number);
        }
        Key {
            generation,
            index: number << CHUNK_BITS | place,
        }
    }

    /// The place of a timer that still lives.
    #[inline]
    pub fn find(&self, key: Key) -> Option<u32> {
        let chunk = self.chunks.get((key.index >> CHUNK_BITS) as usize)?;
        let entry = chunk.entries.get(place_of(key.index))?;
        let is_same = entry.generation == key.generation
            || planted!("wheel_generation_unused") && entry.generation != 0;
        is_same.then_some(key.index)
    }

    /// The entry at an index that came from a link or from [`find`](Self::find).
    #[inline]
    pub fn at(&self, index: u32) -> &Entry<T> {
        &self.chunks[(index >> CHUNK_BITS) as usize].entries[place_of(index)]
    }

    /// As [`at`](Self::at), to change it.
    #[inline]
    pub fn at_mut(&mut self, index: u32) -> &mut Entry<T> {
        &mut self.chunks[(index >> CHUNK_BITS) as usize].entries[place_of(index)]
    }

    /// Vacates a place and returns what was in it.
    #[inline]
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let number = index >> CHUNK_BITS;
        let chunk = &mut self.chunks[number as usize];
        let entry = &mut chunk.entries[place_of(index)];
        let value = entry.value.take();
        entry.generation = 0;
        entry.next = chunk.vacant;
        if !planted!("wheel_place_lost") {
            chunk.vacant = place_of(index) as u32;
        }
        chunk.live -= 1;
        self.live -= 1;
        if chunk.live as usize == CHUNK - 1 {
            self.enter_room(number);
        } else if chunk.live == 0 {
            self.on_empty(number);
        }
        value
    }

    /// Places of the timers whose value is wanted.
    pub fn select(&self, mut which: impl FnMut(&T) -> bool) -> Vec<u32> {
        let mut found = Vec::new();
        for (number, chunk) in self.chunks.iter().enumerate() {
            let base = (number as u32) << CHUNK_BITS;
            for (place, entry) in chunk.entries.iter().enumerate() {
                if entry.value.as_ref().is_some_and(&mut which) {
                    found.push(base | place as u32);
                }
            }
        }
        found
    }

    /// What all timers hold.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        let entries = self.chunks.iter().flat_map(|chunk| &chunk.entries);
        entries.filter_map(|entry| entry.value.as_ref())
    }

    fn make_room(&mut self) {
        let number = if self.bare == NONE {
            assert!(self.chunks.len() < CHUNKS_MAX, "four billion timers");
            self.chunks.push(Chunk::BARE);
            self.chunks.len() as u32 - 1
        } else {
            let number = self.bare;
            self.bare = self.chunks[number as usize].next;
            number
        };
        self.enter_room(number);
    }

    fn enter_room(&mut self, number: u32) {
        let first = self.room;
        if first != NONE {
            self.chunks[first as usize].prev = number;
        }
        let chunk = &mut self.chunks[number as usize];
        chunk.next = first;
        chunk.prev = NONE;
        self.room = number;
    }

    fn leave_room(&mut self, number: u32) {
        let chunk = &self.chunks[number as usize];
        let (prev, next) = (chunk.prev, chunk.next);
        match prev {
            NONE => self.room = next,
            prev => self.chunks[prev as usize].next = next,
        }
        if next != NONE {
            self.chunks[next as usize].prev = prev;
        }
    }

    /// Gives an empty chunk back, unless it is the only one with room: that one is needed next.
    fn on_empty(&mut self, number: u32) {
        let chunk = &self.chunks[number as usize];
        if chunk.prev == NONE && chunk.next == NONE || planted!("wheel_chunk_kept") {
            return;
        }
        self.leave_room(number);
        self.chunks[number as usize] = Chunk {
            next: self.bare,
            ..Chunk::BARE
        };
        self.bare = number;
    }
}

#[inline]
fn place_of(index: u32) -> usize {
    index as usize & (CHUNK - 1)
}
