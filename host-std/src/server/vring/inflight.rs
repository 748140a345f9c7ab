//! In-flight region: log of unfinished requests that survives a killed server (vhost-user, "Inflight I/O tracking").
//!
//! The client keeps it, in a memory file. For each queue it has a header and an entry for each descriptor, laid out as the
//! specification says; behind them is a trailer of our own:
//!
//! ```text
//! queue 0: features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16, then desc_num times
//!          inflight u8, padding [u8; 5], next u16, counter u64                              padded to 64 bytes
//! queue 1 ...
//! trailer: magic u64, version u32, words u32, then for each unit one word: see `Word`
//! ```
//!
//! A server may be killed between any two stores, and its successor sees all that were made before: each is one atomic
//! access, in program order. The region is untrusted input. Every index in it is bounded, an invalid value leaves the ring
//! stopped, and a client that forges it harms only its own requests.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use blk_core::virtq::{RingPosition, SIZE_MAX};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::memory::{BusErrors, Mapping};
use crate::server::mapping::map;
use crate::server::mutant::{self, Mutant};

/// What GET_INFLIGHT_FD and SET_INFLIGHT_FD say of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) struct InflightLayout {
    pub(in crate::server) bytes: u64,
    pub(in crate::server) offset: u64,
    pub(in crate::server) queues: u16,
    pub(in crate::server) queue_size: u16,
}

/// The version of the split layout (`QueueRegionSplit`).
const VERSION: u16 = 1;

const QUEUE_HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;

/// Bytes of one queue's part. QEMU's libvhost-user pads to the same.
const fn queue_bytes(queue_size: u16) -> usize {
    (QUEUE_HEADER_BYTES + ENTRY_BYTES * queue_size as usize).next_multiple_of(64)
}

/// "BLKHOST" and a layout number.
const TRAILER_MAGIC: u64 = u64::from_le_bytes(*b"BLKHOST1");
const TRAILER_VERSION: u32 = 1;
const TRAILER_HEADER_BYTES: usize = 16;

/// Most words in a trailer.
pub(super) const WORDS_MAX: u32 = 256;

/// A region that is mapped. A clone is another handle to it.
#[derive(Clone, Debug)]
pub(in crate::server) struct Region {
    mapping: Arc<Mapping>,
    /// Where it begins in the mapping; a multiple of 8.
    start: usize,
    bytes: usize,
    queues: u16,
    queue_size: u16,
}

impl Region {
    /// Makes a region, with a trailer of `words` words, and the file that the client is to keep.
    pub(in crate::server) fn create(
        queues: u16,
        queue_size: u16,
        words: u32,
    ) -> io::Result<(Self, InflightLayout, File)> {
        let persistent = TRAILER_HEADER_BYTES + 8 * words as usize;
        let bytes = queue_bytes(queue_size) * usize::from(queues) + persistent;
        let fd = memfd_create("in-flight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, bytes as u64)?;
        // Sealed: access beyond the end of a shortened file raises SIGBUS.
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = File::from(fd);
        let layout = InflightLayout { bytes: bytes as u64, offset: 0, queues, queue_size };
        let errors = Arc::new(BusErrors::default());
        let region = Self::open(file.try_clone()?, &layout, &errors).map_err(io::Error::other)?;
        for index in 0..queues {
            let queue = region.queue(index).ok_or(io::ErrorKind::InvalidInput)?;
            queue.u16(DESC_NUM).store(queue_size, Ordering::Relaxed);
            queue.u16(QUEUE_VERSION).store(VERSION, Ordering::Release);
        }
        if let Some(at) = region.trailer_at(0) {
            region.at::<AtomicU32>(at + 12).store(words.to_le(), Ordering::Relaxed);
            region.at::<AtomicU32>(at + 8).store(TRAILER_VERSION.to_le(), Ordering::Relaxed);
            region.at::<AtomicU64>(at).store(TRAILER_MAGIC.to_le(), Ordering::Release);
        }
        Ok((region, layout, file))
    }

    /// Maps a region that the client kept, also one that another program made.
    pub(in crate::server) fn open(
        file: File,
        layout: &InflightLayout,
        errors: &Arc<BusErrors>,
    ) -> Result<Self, String> {
        let InflightLayout { bytes, offset, queues, queue_size } = *layout;
        let need = queue_bytes(queue_size) as u64 * u64::from(queues);
        if queues == 0 || queue_size == 0 || queue_size > SIZE_MAX || bytes < need {
            return Err(format!("a region of {bytes} bytes has no room for {queues} queues of {queue_size}"));
        }
        if !offset.is_multiple_of(8) {
            return Err(format!("the region begins at offset {offset}, which is no multiple of 8"));
        }
        // The trailer is small: what lies behind it is of no use to us, whatever the client says.
        let most = need + (TRAILER_HEADER_BYTES as u64) + 8 * u64::from(WORDS_MAX);
        let (mapping, start) = map(file, offset, bytes.min(most), errors)?;
        Ok(Self { mapping, start, bytes: bytes.min(most) as usize, queues, queue_size })
    }

    /// The part of a queue.
    pub(in crate::server) fn queue(&self, index: u16) -> Option<QueueLog> {
        (index < self.queues).then(|| QueueLog {
            at: queue_bytes(self.queue_size) * usize::from(index),
            size: self.queue_size,
            region: self.clone(),
        })
    }

    /// A word of the trailer, if it has one.
    pub(super) fn word(&self, index: u32) -> Option<&AtomicU64> {
        let at = self.trailer_at(index.checked_add(1)?)?;
        let known = self.at::<AtomicU64>(at).load(Ordering::Acquire) == TRAILER_MAGIC.to_le()
            && self.at::<AtomicU32>(at + 8).load(Ordering::Acquire) == TRAILER_VERSION.to_le();
        let words = u32::from_le(self.at::<AtomicU32>(at + 12).load(Ordering::Acquire));
        (known && index < words).then(|| self.at::<AtomicU64>(at + TRAILER_HEADER_BYTES + 8 * index as usize))
    }

    /// Where the trailer begins, if there is room for it with `words` words.
    fn trailer_at(&self, words: u32) -> Option<usize> {
        let at = queue_bytes(self.queue_size) * usize::from(self.queues);
        let end = at + TRAILER_HEADER_BYTES + 8 * words as usize;
        (end <= self.bytes).then_some(at)
    }

    /// The atomic at `offset`, which the caller keeps aligned for it and within the region.
    fn at<T: SharedAtomic>(&self, offset: usize) -> &T {
        assert!(offset + size_of::<T>() <= self.bytes && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: `start + offset` and the bytes of a `T` from there on lie within the mapping, since `open` has mapped
        // `bytes` bytes from `start` on; the mapping lives as long as `self`.
        let at = unsafe { self.mapping.as_ptr().add(self.start + offset) };
        // SAFETY: mapped, aligned (the mapping is by pages, `start` by 8 bytes, `offset` was checked) and initialised,
        // as any bytes are to an integer. Rust code accesses it only by atomics, here and in other processes' eyes.
        unsafe { NonNull::new_unchecked(at).cast::<T>().as_ref() }
    }
}

/// Integers that two processes may share: any bytes are a value, and access to one is never torn.
trait SharedAtomic {}
impl SharedAtomic for AtomicU8 {}
impl SharedAtomic for AtomicU16 {}
impl SharedAtomic for AtomicU32 {}
impl SharedAtomic for AtomicU64 {}

// Offsets in a queue's part.
const QUEUE_VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;

// Offsets in an entry.
const IN_FLIGHT: usize = 0;
/// Progress of a request that must not be repeated from its start. Our extension, in the first padding byte.
const STAGE: usize = 1;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// A queue's part of a region.
#[derive(Clone, Debug)]
pub(in crate::server) struct QueueLog {
    region: Region,
    at: usize,
    size: u16,
}

/// What a queue's part says about the device before this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::server) struct Recovered {
    /// Heads of the chains that were taken and not returned, the oldest first.
    pub(in crate::server) unfinished: Vec<u16>,
    /// What the next chain's counter is.
    pub(in crate::server) counter: u64,
}

impl Recovered {
    /// Where the ring is to go on, whose used index is `used`.
    pub(in crate::server) fn position(&self, used: u16) -> RingPosition {
        RingPosition { next_avail: used.wrapping_add(self.unfinished.len() as u16), next_used: used }
    }
}

impl QueueLog {
    /// Clears the last batch if its used index was stored, and lists the chains still in flight. `used` is the ring's used index.
    pub(in crate::server) fn recover(&self, ring_size: u16, used: u16) -> Result<Recovered, String> {
        if ring_size > self.size {
            return Err(format!("a ring of {ring_size} entries has an in-flight region for {}", self.size));
        }
        match self.u16(QUEUE_VERSION).load(Ordering::Acquire) {
            // Nobody has used it yet.
            0 => {
                self.u16(DESC_NUM).store(self.size, Ordering::Relaxed);
                self.u16(QUEUE_VERSION).store(VERSION, Ordering::Release);
            }
            VERSION => {}
            version => return Err(format!("the in-flight region has version {version}, and not 1")),
        }
        let mut unfinished = Vec::new();
        let mut counter = 0;
        let batch = used.wrapping_sub(self.u16(USED_IDX).load(Ordering::Acquire));
        if batch != 0 {
            self.clear_batch(batch, ring_size)?;
            self.u16(USED_IDX).store(used, Ordering::Release);
        }
        for head in 0..ring_size {
            if self.entry_u8(head, IN_FLIGHT).load(Ordering::Acquire) != 0 {
                let taken_at = self.entry_counter(head).load(Ordering::Acquire);
                counter = taken_at.wrapping_add(1).max(counter);
                unfinished.push((taken_at, head));
            }
        }
        unfinished.sort_unstable();
        Ok(Recovered { unfinished: unfinished.into_iter().map(|(_, head)| head).collect(), counter })
    }

    /// The driver has seen the last batch, of `batch` chains: they are not in flight.
    fn clear_batch(&self, batch: u16, ring_size: u16) -> Result<(), String> {
        if mutant::active(Mutant::BatchNotRecognised) {
            return Ok(());
        }
        if batch > ring_size {
            // No batch is larger than the ring: the guest has set the ring up anew, and no chain of the old one can be in flight.
            let unfinished =
                (0..ring_size).any(|head| self.entry_u8(head, IN_FLIGHT).load(Ordering::Acquire) != 0);
            return if unfinished {
                Err("the in-flight region has requests that are not of this ring".into())
            } else {
                Ok(())
            };
        }
        let mut head = self.u16(LAST_BATCH_HEAD).load(Ordering::Acquire);
        for _ in 0..batch {
            if head >= ring_size {
                return Err(format!("the in-flight region's last batch leads to entry {head}"));
            }
            self.entry_u8(head, IN_FLIGHT).store(0, Ordering::Release);
            head = self.entry_u16(head, NEXT).load(Ordering::Acquire);
        }
        Ok(())
    }

    /// The chain at `head` was taken, as number `counter`.
    #[inline]
    pub(super) fn taken(&self, head: u16, counter: u64) {
        if head < self.size && !mutant::active(Mutant::TakenNotRecorded) {
            self.entry_u8(head, STAGE).store(0, Ordering::Relaxed);
            self.entry_counter(head).store(counter, Ordering::Release);
            self.entry_u8(head, IN_FLIGHT).store(1, Ordering::Release);
        }
    }

    /// How far the request in the chain at `head` had come.
    pub(super) fn stage(&self, head: u16) -> u8 {
        if head < self.size { self.entry_u8(head, STAGE).load(Ordering::Acquire) } else { 0 }
    }

    pub(super) fn set_stage(&self, head: u16, stage: u8) {
        if head < self.size && !mutant::active(Mutant::StageNotRecorded) {
            self.entry_u8(head, STAGE).store(stage, Ordering::Release);
        }
    }

    /// The chain at `head` has its used entry: it joins the batch.
    #[inline]
    pub(super) fn returned(&self, head: u16) {
        if head < self.size {
            let last = self.u16(LAST_BATCH_HEAD).load(Ordering::Relaxed);
            self.entry_u16(head, NEXT).store(last, Ordering::Release);
            self.u16(LAST_BATCH_HEAD).store(head, Ordering::Release);
        }
    }

    /// The used index was stored as `used`, with `batch` chains more than before.
    #[inline]
    pub(super) fn published(&self, batch: u16, used: u16) {
        let mut head = self.u16(LAST_BATCH_HEAD).load(Ordering::Relaxed);
        for _ in 0..batch {
            if head >= self.size {
                break;
            }
            self.entry_u8(head, IN_FLIGHT).store(0, Ordering::Release);
            head = self.entry_u16(head, NEXT).load(Ordering::Relaxed);
        }
        self.u16(USED_IDX).store(used, Ordering::Release);
    }

    #[inline]
    fn u16(&self, offset: usize) -> &AtomicU16 {
        self.region.at(self.at + offset)
    }

    #[inline]
    fn entry_u8(&self, head: u16, offset: usize) -> &AtomicU8 {
        self.region.at(self.entry(head) + offset)
    }

    #[inline]
    fn entry_u16(&self, head: u16, offset: usize) -> &AtomicU16 {
        self.region.at(self.entry(head) + offset)
    }

    #[inline]
    fn entry_counter(&self, head: u16) -> &AtomicU64 {
        self.region.at(self.entry(head) + COUNTER)
    }

    #[inline]
    const fn entry(&self, head: u16) -> usize {
        self.at + QUEUE_HEADER_BYTES + ENTRY_BYTES * head as usize
    }
}

#[cfg(test)]
mod tests;
