//! Latch in front of a storage that reports a lost write once and then forgets it.

use crate::op::{Op, Segment};
use crate::storage::{Busy, Cache, Completion, Info, IoError, IoErrorKind, Storage, Submission};
use crate::units::Tag;

/// Makes the failure of a durable operation storage, for a [`Storage`] that is not so by itself.
///
/// After a failed flush, FUA write, or write that is stable at once, the host may have dropped the data and believe it
/// clean: no later flush can be believed. From then on flushes and mutations end with [`IoErrorKind::Latched`] and plain
/// reads go on. Nothing but an operator's restart on a checked image clears it, so there is no method that does.
///
/// One latch covers one handle. A storage with several handles keeps its latch behind all of them instead.
#[derive(Debug)]
pub struct LatchingStorage<S, const N: usize> {
    inner: S,
    /// The durable operations in flight.
    durable: [Option<Tag>; N],
    latched: bool,
}

impl<S, const N: usize> LatchingStorage<S, N> {
    /// A latch around `inner`, for at most `N` durable operations in flight.
    pub const fn new(inner: S) -> Self {
        Self { inner, durable: [None; N], latched: false }
    }

    /// Whether a durable operation has failed.
    pub const fn is_latched(&self) -> bool {
        self.latched
    }

    /// A durable operation has ended.
    fn note(&mut self, result: Result<(), IoError>) {
        if let Err(error) = result {
            if !is_refusal(error.kind) && !self.latched {
                log!(error, "disk latched: a durable operation failed: {}", error);
            }
            self.latched |= !is_refusal(error.kind);
        }
    }
}

impl<M: ?Sized, S: Storage<M>, const N: usize> Storage<M> for LatchingStorage<S, N> {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    fn submit(&mut self, memory: &M, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        if self.latched && op.fails_when_latched() {
            return Ok(Submission::Done(Err(IoErrorKind::Latched.into())));
        }
        let info = self.inner.info();
        let durable = match op {
            Op::Flush | Op::Write { fua: true, .. } | Op::StoreState { .. } => true,
            Op::Write { .. } => info.cache == Cache::WriteThrough,
            Op::WriteZeroes { .. } | Op::Discard { .. } => info.range_stable,
            Op::Read { .. } | Op::Hold { .. } | Op::LoadState { .. } => false,
        };
        if !durable {
            return self.inner.submit(memory, tag, op, segments);
        }
        let entry = self.durable.iter_mut().find(|entry| entry.is_none()).ok_or(Busy)?;
        let submission = self.inner.submit(memory, tag, op, segments)?;
        match submission {
            Submission::Pending => *entry = Some(tag),
            Submission::Done(result) => self.note(result),
        }
        Ok(submission)
    }

    fn poll(&mut self, memory: &M) -> Option<Completion> {
        let mut completion = self.inner.poll(memory)?;
        let entry = self.durable.iter_mut().find(|entry| **entry == Some(completion.tag));
        let durable = entry.is_some();
        if let Some(entry) = entry {
            *entry = None;
        }
        // Tested at completion: an operation that was in flight beside the one that failed may have "succeeded" only
        // because the host had already reported, and forgotten, the error.
        if durable {
            if self.latched && completion.result.is_ok() {
                completion.result = Err(IoErrorKind::Latched.into());
            }
            self.note(completion.result);
        }
        Some(completion)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        self.inner.staging(slot)
    }

    fn release_hold(&mut self, slot: u16) {
        self.inner.release_hold(slot);
    }

    fn cancel_in_flight(&mut self) -> bool {
        let cancelled = self.inner.cancel_in_flight();
        if cancelled {
            self.durable = [None; N];
        }
        cancelled
    }
}

/// Whether an error says that nothing was attempted, so that nothing was lost.
const fn is_refusal(kind: IoErrorKind) -> bool {
    matches!(
        kind,
        IoErrorKind::ReadOnly
            | IoErrorKind::OutOfRange
            | IoErrorKind::Memory
            | IoErrorKind::Unsupported
            | IoErrorKind::Absent
    )
}

#[cfg(test)]
mod tests {
    use heapless::Deque;

    use super::*;
    use crate::ram::plain_info;
    use crate::units::Extent;

    /// Two flushes at once: the host gives the error to one of them only, the other "succeeds".
    struct OneOfTwo {
        info: Info,
        results: Deque<Completion, 4>,
    }

    impl Storage<()> for OneOfTwo {
        fn info(&self) -> &Info {
            &self.info
        }
        fn submit(&mut self, _: &(), tag: Tag, op: Op, _: &[Segment]) -> Result<Submission, Busy> {
            let first = self.results.is_empty();
            let result = if first && op == Op::Flush { Err(IoErrorKind::Medium.into()) } else { Ok(()) };
            self.results.push_back(Completion { tag, result }).map(|()| Submission::Pending).map_err(|_| Busy)
        }
        fn poll(&mut self, _: &()) -> Option<Completion> {
            self.results.pop_front()
        }
        fn staging(&mut self, _: u16) -> &mut [u8] {
            &mut []
        }
    }

    #[test]
    fn of_two_flushes_in_flight_neither_succeeds_when_one_fails() {
        let inner = OneOfTwo { info: plain_info(4096, Cache::WriteBack), results: Deque::new() };
        let mut storage = LatchingStorage::<_, 4>::new(inner);
        let tag = |generation| Tag { slot: 0, generation };
        let write = Op::Write { extent: Extent::new(0, 1), fua: false };
        assert_eq!(storage.submit(&(), tag(1), Op::Flush, &[]), Ok(Submission::Pending));
        assert_eq!(storage.submit(&(), tag(2), Op::Flush, &[]), Ok(Submission::Pending));
        let mut next = || storage.poll(&()).map(|c| (c.tag.generation, c.result.map_err(|e| e.kind)));
        assert_eq!(next(), Some((1, Err(IoErrorKind::Medium))));
        assert_eq!(next(), Some((2, Err(IoErrorKind::Latched))));
        assert_eq!(next(), None);
        assert!(storage.is_latched());
        let latched = Ok(Submission::Done(Err(IoErrorKind::Latched.into())));
        assert_eq!(storage.submit(&(), tag(3), write, &[]), latched);
        assert_eq!(storage.submit(&(), tag(4), Op::Flush, &[]), latched);
        let read = Op::Read { extent: Extent::new(0, 1) };
        assert_eq!(storage.submit(&(), tag(5), read, &[]), Ok(Submission::Pending));
        let mut next = || storage.poll(&()).map(|c| (c.tag.generation, c.result.map_err(|e| e.kind)));
        assert_eq!(next(), Some((5, Ok(()))), "plain reads go on");
    }

    /// A host that does every operation at once, and fails the first flush.
    struct AtOnce(Info, bool);

    impl Storage<()> for AtOnce {
        fn info(&self) -> &Info {
            &self.0
        }
        fn submit(&mut self, _: &(), _: Tag, op: Op, _: &[Segment]) -> Result<Submission, Busy> {
            let fails = op == Op::Flush && !core::mem::replace(&mut self.1, true);
            Ok(Submission::Done(if fails { Err(IoErrorKind::Medium.into()) } else { Ok(()) }))
        }
        fn poll(&mut self, _: &()) -> Option<Completion> {
            None
        }
        fn staging(&mut self, _: u16) -> &mut [u8] {
            &mut []
        }
    }

    #[test]
    fn a_flush_that_fails_at_once_latches() {
        let inner = AtOnce(plain_info(4096, Cache::WriteBack), false);
        let mut storage = LatchingStorage::<_, 4>::new(inner);
        let mut flush = || storage.submit(&(), Tag::default(), Op::Flush, &[]);
        assert_eq!(flush(), Ok(Submission::Done(Err(IoErrorKind::Medium.into()))));
        assert_eq!(flush(), Ok(Submission::Done(Err(IoErrorKind::Latched.into()))));
    }
}
