//! Reads what an image holds before anything is recorded.

use std::time::Duration;

use blk_core::memory::GuestMemory as _;
use blk_core::op::{Op, Segment};
use blk_core::storage::{Completion, IoErrorKind, Storage as _};
use blk_core::units::{Extent, GuestAddr, Tag};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::backend::Handle;
use crate::memory::MappedMemory;
use crate::recording::{Contents, Summary};

/// Bytes read at a time.
const PIECE_BYTES: u32 = 1 << 20;

/// Reads a whole image through one of its handles.
pub(super) fn read_image(handle: &mut dyn Handle) -> Result<Contents, IoErrorKind> {
    let info = *handle.info();
    let piece_bytes = PIECE_BYTES.min(info.transfer_max_bytes).max(info.logical_block_bytes);
    let memory =
        MappedMemory::anonymous(&[(GuestAddr(0), piece_bytes as usize)]).map_err(|_| IoErrorKind::Memory)?;
    let mut bytes = vec![0; piece_bytes as usize];
    let (mut summary, mut at) = (Summary::default(), 0);
    while at < info.sectors {
        let sectors = u64::from(piece_bytes >> 9).min(info.sectors - at);
        let len = (sectors << 9) as u32;
        let tag = Tag { slot: 0, generation: 0 };
        let segment = Segment::Guest { addr: GuestAddr(0), len };
        let op = Op::Read { extent: Extent::new(at, sectors) };
        let submission = handle.submit(&memory, tag, op, &[segment]).map_err(|_| IoErrorKind::Medium)?;
        let result = submission.done().unwrap_or_else(|| next(handle, &memory).result);
        result.map_err(|error| error.kind)?;
        let piece = &mut bytes[..len as usize];
        memory.read(GuestAddr(0), piece).map_err(|_| IoErrorKind::Memory)?;
        summary.add(piece);
        at += sectors;
    }
    Ok(summary.contents())
}

fn next(handle: &mut dyn Handle, memory: &MappedMemory) -> Completion {
    loop {
        if let Some(completion) = handle.poll(memory) {
            return completion;
        }
        if handle.arm() {
            let timeout = Timespec::try_from(Duration::from_millis(100)).ok();
            // Whatever it returns, the loop looks again.
            let _ = poll(&mut [PollFd::new(&handle.wake_fd(), PollFlags::IN)], timeout.as_ref());
        }
    }
}
