//! A storage with nothing behind it.

use blk_core::op::{Op, Segment};
use blk_core::ram::plain_info;
use blk_core::storage::{Busy, Cache, Completion, Info, Storage, Submission};
use blk_core::units::Tag;

use crate::DEPTH;

/// Moves no data. Does every operation at once, or has it in flight until the next poll, in order.
pub(crate) struct Null {
    info: Info,
    at_once: bool,
    done: [Tag; DEPTH],
    submitted: usize,
    polled: usize,
    staging: Vec<u8>,
}

impl Null {
    pub(crate) fn new(bytes: usize, staging_bytes: usize, at_once: bool) -> Self {
        let info = Info { staging_bytes: staging_bytes as u32, ..plain_info(bytes as u64, Cache::WriteBack) };
        Self {
            info,
            at_once,
            done: [Tag::default(); DEPTH],
            submitted: 0,
            polled: 0,
            staging: vec![0; staging_bytes],
        }
    }
}

impl<M: ?Sized> Storage<M> for Null {
    fn info(&self) -> &Info {
        &self.info
    }

    fn submit(&mut self, _memory: &M, tag: Tag, _op: Op, _segments: &[Segment]) -> Result<Submission, Busy> {
        if self.at_once {
            return Ok(Submission::Done(Ok(())));
        }
        self.done[self.submitted % DEPTH] = tag;
        self.submitted += 1;
        Ok(Submission::Pending)
    }

    fn poll(&mut self, _memory: &M) -> Option<Completion> {
        if self.polled == self.submitted {
            return None;
        }
        let tag = self.done[self.polled % DEPTH];
        self.polled += 1;
        Some(Completion { tag, result: Ok(()) })
    }

    fn staging(&mut self, _slot: u16) -> &mut [u8] {
        &mut self.staging
    }
}
