//! The driver of a disk controller that interrupts, as a `Storage`: fixed command blocks, no allocator, no lock.
//!
//! ```text
//! submit: command block, doorbell -> controller: DMA, status -> interrupt handler: `ended` -> poll: Completion
//! ```

#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "slots are below SLOTS; ranges were checked"
)]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use blk_core::memory::GuestMemory;
use blk_core::op::{Op, Segment};
use blk_core::ram::plain_info;
use blk_core::storage::{Busy, Cache, Completion, Info, IoErrorKind, Storage, Submission};
use blk_core::sync::check;
use blk_core::units::{Extent, GuestAddr, Tag};

const SLOTS: usize = 8;
const SEGMENTS: usize = 4;

const READ: u32 = 1;
const WRITE: u32 = 2;
const FLUSH: u32 = 3;

/// The controller's registers, its command blocks, and what its interrupt handler found: shared by the driver, the handler and the
/// controller, and so all of it atomics. Bit n is command block n.
pub(crate) struct Controller {
    /// Written by the driver: blocks to be executed.
    doorbell: AtomicU32,
    /// Written by the controller: blocks that have ended, and which of them have failed.
    status: AtomicU32,
    failed: AtomicU32,
    /// Written by the handler: blocks that have ended.
    ended: AtomicU32,
    blocks: [CommandBlock; SLOTS],
}

struct CommandBlock {
    kind: AtomicU32,
    sector: AtomicU64,
    /// Address and length of each piece of memory; a length of 0 ends them.
    segments: [(AtomicU64, AtomicU32); SEGMENTS],
}

impl Controller {
    pub(crate) const fn new() -> Self {
        let [doorbell, status, failed, ended] = [const { AtomicU32::new(0) }; 4];
        Self { doorbell, status, failed, ended, blocks: [const { CommandBlock::new() }; SLOTS] }
    }

    /// The interrupt handler: acknowledges what the controller reports, and notes it for the driver. It may interrupt the driver
    /// anywhere, on any processor. Afterwards the device is to be polled.
    pub(crate) fn handle_interrupt(&self) {
        let ended = self.status.swap(0, Ordering::AcqRel);
        self.ended.fetch_or(ended, Ordering::Release);
    }
}

impl CommandBlock {
    const fn new() -> Self {
        let segments = [const { (AtomicU64::new(0), AtomicU32::new(0)) }; SEGMENTS];
        Self { kind: AtomicU32::new(0), sector: AtomicU64::new(0), segments }
    }
}

/// The storage.
pub(crate) struct Driver {
    controller: &'static Controller,
    info: Info,
    /// The operation in each command block.
    tags: [Option<Tag>; SLOTS],
}

impl Driver {
    pub(crate) const fn new(controller: &'static Controller, bytes: u64) -> Self {
        let info = plain_info(bytes, Cache::WriteBack);
        let info = Info { segments_max: SEGMENTS as u16, holds: false, ..info };
        Self { controller, info, tags: [None; SLOTS] }
    }
}

impl<M: GuestMemory + ?Sized> Storage<M> for Driver {
    fn info(&self) -> &Info {
        &self.info
    }

    fn submit(&mut self, _: &M, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        let refuse = |error| Ok(Submission::Done(Err(error)));
        let extent = op.extent().unwrap_or(Extent::new(0, 0));
        if let Err(error) = check(&self.info, op, extent, segments) {
            return refuse(error);
        }
        let kind = match op {
            Op::Read { .. } => READ,
            Op::Write { .. } => WRITE,
            Op::Flush => FLUSH,
            _ => return refuse(IoErrorKind::Unsupported.into()),
        };
        let slot = self.tags.iter().position(Option::is_none).ok_or(Busy)?;
        let block = &self.controller.blocks[slot];
        block.kind.store(kind, Ordering::Relaxed);
        block.sector.store(extent.start.0, Ordering::Relaxed);
        let end = Segment::Staging { offset: 0, len: 0 };
        for ((at, bytes), segment) in block.segments.iter().zip(segments.iter().chain([&end])) {
            if let Segment::Guest { addr, .. } = segment {
                at.store(addr.0, Ordering::Relaxed);
            }
            bytes.store(segment.len(), Ordering::Relaxed);
        }
        self.tags[slot] = Some(tag);
        // The command block before the doorbell.
        self.controller.doorbell.fetch_or(1 << slot, Ordering::Release);
        Ok(Submission::Pending)
    }

    fn poll(&mut self, _: &M) -> Option<Completion> {
        // What the controller wrote to memory before it reported the end is seen after this.
        let slot = self.controller.ended.load(Ordering::Acquire).trailing_zeros();
        let tag = self.tags.get_mut(slot as usize)?.take()?;
        self.controller.ended.fetch_and(!(1 << slot), Ordering::Relaxed);
        let failed = self.controller.failed.fetch_and(!(1 << slot), Ordering::Relaxed) & 1 << slot != 0;
        Some(Completion { tag, result: if failed { Err(IoErrorKind::Medium.into()) } else { Ok(()) } })
    }

    /// Not used: virtio-blk stages nothing.
    fn staging(&mut self, _: u16) -> &mut [u8] {
        &mut []
    }
}

/// The hardware, which a thread plays: a disk of `bytes` bytes, one command at a time, each followed by an interrupt.
pub(crate) fn play_hardware(
    controller: &Controller,
    memory: &impl GuestMemory,
    bytes: usize,
    interrupt: impl Fn(),
) -> ! {
    let mut disk = vec![0; bytes];
    loop {
        let slot = controller.doorbell.load(Ordering::Acquire).trailing_zeros();
        let Some(block) = controller.blocks.get(slot as usize) else {
            std::thread::yield_now();
            continue;
        };
        controller.doorbell.fetch_and(!(1 << slot), Ordering::Relaxed);
        if transfer(block, memory, &mut disk).is_none() {
            controller.failed.fetch_or(1 << slot, Ordering::Relaxed);
        }
        controller.status.fetch_or(1 << slot, Ordering::Release);
        interrupt();
    }
}

/// DMA.
fn transfer(block: &CommandBlock, memory: &impl GuestMemory, disk: &mut [u8]) -> Option<()> {
    let kind = block.kind.load(Ordering::Relaxed);
    let mut rest = disk.get_mut(usize::try_from(block.sector.load(Ordering::Relaxed)).ok()? * 512..)?;
    for (at, bytes) in &block.segments {
        let len = bytes.load(Ordering::Relaxed) as usize;
        if len == 0 || kind == FLUSH {
            return Some(());
        }
        let (piece, after) = rest.split_at_mut_checked(len)?;
        let addr = GuestAddr(at.load(Ordering::Relaxed));
        if kind == READ { memory.write(addr, piece) } else { memory.read(addr, piece) }.ok()?;
        rest = after;
    }
    Some(())
}
