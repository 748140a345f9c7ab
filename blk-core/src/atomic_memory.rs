//! Guest memory that several processors share, in several regions, without `unsafe`.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::memory::{GuestMemory, MemoryError};
use crate::units::GuestAddr;

/// Bytes of a word.
const WORD: usize = 4;

/// Guest memory as 32-bit atomics: any number of processors and interrupt handlers may use it at a time.
///
/// Each access touches each word once, with one atomic operation: a load; a store of a whole word; a compare-exchange where a
/// store covers a part of a word, so that what others write to its other bytes is not lost. So
///
/// - an aligned field of 8, 16 or 32 bits is never torn; of a longer access each such field is not;
/// - [`load_u16_acquire`](GuestMemory::load_u16_acquire) sees, and later reads see, what was written before the matching
///   [`store_u16_release`](GuestMemory::store_u16_release) on another processor; other accesses are relaxed.
///
/// A hypervisor has its guest's memory at an address, and makes words of it once, which is where its `unsafe` is:
/// `core::slice::from_raw_parts(address as *const AtomicU32, bytes / 4)`. The memory has to be mapped and aligned for as long as the
/// slice lives, and no Rust code may hold other references to it than to atomics. Guests and their DMA may change it as they like.
///
/// ```
/// use blk_core::atomic_memory::{AtomicMemory, Region};
/// use blk_core::memory::GuestMemory;
/// use blk_core::units::GuestAddr;
/// use core::sync::atomic::AtomicU32;
///
/// static LOW: [AtomicU32; 1024] = [const { AtomicU32::new(0) }; 1024];
/// static HIGH: [AtomicU32; 1024] = [const { AtomicU32::new(0) }; 1024];
/// static MEMORY: AtomicMemory<'static, 2> =
///     AtomicMemory::new([Region::new(GuestAddr(0), &LOW), Region::new(GuestAddr(1 << 32), &HIGH)]);
///
/// std::thread::spawn(|| MEMORY.write(GuestAddr(1 << 32), b"shared")).join().unwrap()?;
/// let mut bytes = [0; 6];
/// MEMORY.read(GuestAddr(1 << 32), &mut bytes)?;
/// assert_eq!(&bytes, b"shared");
/// # Ok::<(), blk_core::memory::MemoryError>(())
/// ```
///
/// A target without a compare-exchange of 32 bits does not have this type.
#[derive(Clone, Copy, Debug)]
pub struct AtomicMemory<'a, const R: usize = 1> {
    regions: [Region<'a>; R],
}

/// Memory from one guest address on.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    start: GuestAddr,
    words: &'a [AtomicU32],
}

impl<'a> Region<'a> {
    /// The memory `words`, which the guest sees from address `start` on.
    ///
    /// # Panics
    /// If `start` is no multiple of 4: what is aligned for the guest would not be aligned here. In a static it does not compile.
    #[must_use]
    pub const fn new(start: GuestAddr, words: &'a [AtomicU32]) -> Self {
        assert!(start.0.is_multiple_of(WORD as u64), "a region starts at a multiple of 4");
        Self { start, words }
    }

    /// The words from the one that holds `addr` on, and where in the first of them it lies.
    #[inline]
    fn from(&self, addr: GuestAddr) -> Option<(&'a [AtomicU32], usize)> {
        let offset = usize::try_from(addr.0.checked_sub(self.start.0)?).ok()?;
        let words = self.words.get(offset / WORD..).filter(|words| !words.is_empty())?;
        Some((words, offset % WORD))
    }
}

impl<'a, const R: usize> AtomicMemory<'a, R> {
    /// Memory in these regions, which do not overlap.
    #[must_use]
    pub const fn new(regions: [Region<'a>; R]) -> Self {
        Self { regions }
    }

    #[inline]
    fn from(&self, addr: GuestAddr) -> Result<(&'a [AtomicU32], usize), MemoryError> {
        self.regions.iter().find_map(|region| region.from(addr)).ok_or(MemoryError)
    }

    /// The word that holds the aligned 16 bits at `addr`, and where in it they lie.
    #[inline]
    fn index(&self, addr: GuestAddr) -> Result<(&'a AtomicU32, usize), MemoryError> {
        let (words, skip) = self.from(addr)?;
        let word = words.first().filter(|_| addr.0.is_multiple_of(2));
        Ok((word.ok_or(MemoryError)?, skip))
    }
}

impl<const R: usize> GuestMemory for AtomicMemory<'_, R> {
    #[inline]
    fn read(&self, mut addr: GuestAddr, mut into: &mut [u8]) -> Result<(), MemoryError> {
        while !into.is_empty() {
            let (words, skip) = self.from(addr)?;
            let len = room(words, skip).min(into.len());
            let (piece, rest) = into.split_at_mut_checked(len).ok_or(MemoryError)?;
            addr = after(addr, piece.len(), rest.is_empty())?;
            load(words, skip, piece);
            into = rest;
        }
        Ok(())
    }

    #[inline]
    fn write(&self, mut addr: GuestAddr, mut from: &[u8]) -> Result<(), MemoryError> {
        while !from.is_empty() {
            let (words, skip) = self.from(addr)?;
            let len = room(words, skip).min(from.len());
            let (piece, rest) = from.split_at_checked(len).ok_or(MemoryError)?;
            addr = after(addr, piece.len(), rest.is_empty())?;
            store(words, skip, piece);
            from = rest;
        }
        Ok(())
    }

    #[inline]
    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        let (word, skip) = self.index(addr)?;
        let mut bytes = [0; 2];
        load_part(word, skip, &mut bytes, Ordering::Acquire);
        Ok(u16::from_le_bytes(bytes))
    }

    #[inline]
    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        let (word, skip) = self.index(addr)?;
        store_part(word, skip, &value.to_le_bytes(), Ordering::Release);
        Ok(())
    }

    fn contains(&self, mut addr: GuestAddr, mut len: u64) -> bool {
        while len != 0 {
            let Ok((words, skip)) = self.from(addr) else { return false };
            let piece = room(words, skip).min(usize::try_from(len).unwrap_or(usize::MAX));
            len = len.saturating_sub(piece as u64);
            match after(addr, piece, len == 0) {
                Ok(next) => addr = next,
                Err(MemoryError) => return false,
            }
        }
        true
    }
}

/// Bytes of `words` that follow the first `skip`.
#[inline]
const fn room(words: &[AtomicU32], skip: usize) -> usize {
    size_of_val(words).saturating_sub(skip)
}

/// The address `bytes` bytes on. Only the last byte of an access may be the last of all addresses.
#[inline]
fn after(addr: GuestAddr, bytes: usize, last: bool) -> Result<GuestAddr, MemoryError> {
    match addr.checked_add(bytes as u64) {
        None if last => Ok(addr),
        next => next.ok_or(MemoryError),
    }
}

/// Copies out of words, from byte `skip` of the first on: a part of a word, whole words, a part of a word.
#[inline]
fn load(words: &[AtomicU32], skip: usize, into: &mut [u8]) {
    let head = into.len().min(skip.wrapping_neg() % WORD);
    let (head, rest) = into.split_at_mut_checked(head).unwrap_or_default();
    let words = match words {
        [word, words @ ..] if !head.is_empty() => {
            load_part(word, skip, head, Ordering::Relaxed);
            words
        }
        words => words,
    };
    let (whole, tail) = rest.as_chunks_mut();
    for (into, word) in whole.iter_mut().zip(words) {
        *into = word.load(Ordering::Relaxed).to_ne_bytes();
    }
    if !tail.is_empty()
        && let Some(word) = words.get(whole.len())
    {
        load_part(word, 0, tail, Ordering::Relaxed);
    }
}

/// Copies into words, likewise.
#[inline]
fn store(words: &[AtomicU32], skip: usize, from: &[u8]) {
    let head = from.len().min(skip.wrapping_neg() % WORD);
    let (head, rest) = from.split_at_checked(head).unwrap_or_default();
    let words = match words {
        [word, words @ ..] if !head.is_empty() => {
            store_part(word, skip, head, Ordering::Relaxed);
            words
        }
        words => words,
    };
    let (whole, tail) = rest.as_chunks();
    for (from, word) in whole.iter().zip(words) {
        word.store(u32::from_ne_bytes(*from), Ordering::Relaxed);
    }
    if !tail.is_empty()
        && let Some(word) = words.get(whole.len())
    {
        store_part(word, 0, tail, Ordering::Relaxed);
    }
}

#[inline]
fn load_part(word: &AtomicU32, skip: usize, into: &mut [u8], ordering: Ordering) {
    let bytes = word.load(ordering).to_ne_bytes();
    into.iter_mut().zip(bytes.iter().skip(skip)).for_each(|(to, from)| *to = *from);
}

/// Leaves the other bytes of the word as they are at that moment, whoever writes them.
#[inline]
fn store_part(word: &AtomicU32, skip: usize, from: &[u8], ordering: Ordering) {
    word.update(ordering, Ordering::Relaxed, |word| {
        let mut bytes = word.to_ne_bytes();
        bytes.iter_mut().skip(skip).zip(from).for_each(|(to, from)| *to = *from);
        u32::from_ne_bytes(bytes)
    });
}

#[cfg(test)]
mod tests;
