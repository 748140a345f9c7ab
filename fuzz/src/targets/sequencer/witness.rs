//! A disk that notes what it was given and what it answered.

use std::cell::Ref;
use std::collections::BTreeMap;

use blk_core::op::{Op, Segment};
use blk_core::storage::{Busy, Completion, Info, IoError, Storage, Submission};
use blk_core::units::Tag;

use crate::disk::{Disk, Handle};
use crate::memory::Memory;

/// The disk and its notes.
pub struct Witness {
    /// The disk.
    pub handle: Handle,
    /// The operations that it took, with their slots. Whoever has seen them takes them away.
    pub given: Vec<(u16, Op)>,
    /// How the last operation of each slot ended.
    pub results: BTreeMap<u16, Result<(), IoError>>,
}

impl Witness {
    /// Without notes.
    pub const fn new(handle: Handle) -> Self {
        Self { handle, given: Vec::new(), results: BTreeMap::new() }
    }

    /// The disk.
    pub fn disk(&self) -> Ref<'_, Disk> {
        self.handle.disk()
    }
}

impl Storage<Memory> for Witness {
    fn info(&self) -> &Info {
        self.handle.info()
    }

    fn submit(
        &mut self,
        memory: &Memory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        let submission = self.handle.submit(memory, tag, op, segments)?;
        self.given.push((tag.slot, op));
        if let Submission::Done(result) = submission {
            self.results.insert(tag.slot, result);
        }
        Ok(submission)
    }

    fn poll(&mut self, memory: &Memory) -> Option<Completion> {
        let completion = self.handle.poll(memory)?;
        self.results.insert(completion.tag.slot, completion.result);
        Some(completion)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        self.handle.staging(slot)
    }
}
