//! The policy over an image whose failures are scripted.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use blk_core::units::{Extent, GuestAddr, Lba};
use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::backend::Durable;

const INFO: Info = Info {
    sectors: 1 << 20,
    logical_block_bytes: 512,
    physical_block_bytes: 4096,
    optimal_io_bytes: 0,
    read_only: false,
    rotational: false,
    cache: Cache::WriteBack,
    fua: true,
    range_stable: false,
    discard: true,
    staging_bytes: 4096,
    segments_max: 128,
    transfer_max_bytes: 1 << 20,
    holds: true,
    state_bytes: 0,
};

/// An image that does what it is told, in order, and remembers it.
#[derive(Default)]
struct Script {
    /// How the next operations end; success where there is none.
    results: Mutex<VecDeque<IoErrorKind>>,
    /// Operations taken, and their segments.
    taken: Mutex<Vec<(Op, Vec<Segment>)>>,
    latched: Mutex<Option<LatchCause>>,
    busy: AtomicBool,
}

struct ScriptHandle {
    script: Arc<Script>,
    info: Info,
    ended: VecDeque<Completion>,
    in_flight: HashMap<u16, u16>,
    wake: OwnedFd,
    staging: Vec<u8>,
}

struct ScriptBackend(Arc<Script>, Cache);

impl Backend for ScriptBackend {
    fn handle(&self) -> Result<Box<dyn Handle>, OpenError> {
        Ok(Box::new(ScriptHandle {
            script: Arc::clone(&self.0),
            info: self.info(),
            ended: VecDeque::new(),
            in_flight: HashMap::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            staging: vec![0; 4096],
        }))
    }

    fn info(&self) -> Info {
        Info { cache: self.1, ..INFO }
    }

    fn resize(&self, _bytes: Option<u64>) -> Result<Info, OpenError> {
        Ok(self.info())
    }

    fn counts(&self) -> Counts {
        Counts::default()
    }

    fn latched(&self) -> Option<LatchCause> {
        *self.0.latched.lock().unwrap()
    }

    fn latch(&self, cause: LatchCause) {
        *self.0.latched.lock().unwrap() = Some(cause);
    }

    fn set_client_latch(&self, cause: Option<LatchCause>) {
        *self.0.latched.lock().unwrap() = cause;
    }
}

impl Storage<MappedMemory> for ScriptHandle {
    fn info(&self) -> &Info {
        &self.info
    }

    fn submit(
        &mut self,
        _: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        if self.script.busy.load(Ordering::Relaxed) {
            return Err(Busy);
        }
        assert_eq!(self.in_flight.insert(tag.slot, tag.generation), None, "{tag:?} is in flight already");
        self.script.taken.lock().unwrap().push((op, segments.to_vec()));
        let kind = self.script.results.lock().unwrap().pop_front();
        let result = kind.map_or(Ok(()), |kind| Err(IoError { kind, lba: op.extent().map(|e| e.start) }));
        self.ended.push_back(Completion { tag, result });
        Ok(Submission::Pending)
    }

    fn poll(&mut self, _: &MappedMemory) -> Option<Completion> {
        let completion = self.ended.pop_front()?;
        self.in_flight.remove(&completion.tag.slot);
        Some(completion)
    }

    fn staging(&mut self, _slot: u16) -> &mut [u8] {
        &mut self.staging
    }

    fn cancel_in_flight(&mut self) -> bool {
        self.ended.clear();
        self.in_flight.clear();
        true
    }
}

impl Handle for ScriptHandle {
    fn arm(&mut self) -> bool {
        self.ended.is_empty()
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// A handle under a policy, and everything around it.
struct Rig {
    script: Arc<Script>,
    backend: ErrorPolicyBackend,
    handle: Box<dyn Handle>,
    held_requests: Arc<HeldRequests>,
    failures: Receiver<Failure>,
    memory: MappedMemory,
}

const EXTENT: Extent = Extent::new(8, 8);
const WRITE: Op = Op::Write { extent: EXTENT, fua: false };
const READ: Op = Op::Read { extent: EXTENT };
const DATA: [Segment; 1] = [Segment::Guest { addr: GuestAddr(0x1000), len: 4096 }];

fn tag(slot: u16) -> Tag {
    Tag { slot, generation: slot + 100 }
}

impl Rig {
    fn new(read: OnError, write: OnError) -> Self {
        Self::with_cache(read, write, Cache::WriteBack)
    }

    fn with_cache(read: OnError, write: OnError, cache: Cache) -> Self {
        let script = Arc::<Script>::default();
        let (sender, failures) = sync_channel(16);
        let held_requests = Arc::new(HeldRequests::new(sender));
        let image = Arc::new(ScriptBackend(Arc::clone(&script), cache));
        let backend = ErrorPolicyBackend::new(
            image,
            ErrorPolicy { read, write },
            Arc::clone(&held_requests),
            "disk.img",
        );
        let handle = backend.handle().unwrap();
        let memory = MappedMemory::anonymous(&[(GuestAddr(0), 0x10000)]).unwrap();
        Self { script, backend, handle, held_requests, failures, memory }
    }

    fn fail_next(&self, kinds: &[IoErrorKind]) {
        self.script.results.lock().unwrap().extend(kinds);
    }

    fn submit(&mut self, slot: u16, op: Op) {
        let segments = if matches!(op, Op::Read { .. } | Op::Write { .. }) { DATA.as_slice() } else { &[] };
        assert_eq!(self.handle.submit(&self.memory, tag(slot), op, segments), Ok(Submission::Pending));
    }

    fn poll(&mut self) -> Option<(u16, Result<(), IoErrorKind>)> {
        let Completion { tag, result } = self.handle.poll(&self.memory)?;
        Some((tag.slot, result.map_err(|error| error.kind)))
    }

    fn taken(&self) -> usize {
        self.script.taken.lock().unwrap().len()
    }
}

#[test]
fn a_held_write_is_tried_again_with_its_data_and_succeeds() {
    let mut rig = Rig::new(OnError::Report, OnError::Enospc);
    rig.fail_next(&[IoErrorKind::NoSpace]);
    rig.submit(3, WRITE);
    assert_eq!(rig.poll(), None);
    assert!(rig.held_requests.wants_pause() && rig.held_requests.held() == 1);
    let failure = rig.failures.try_recv().unwrap();
    assert_eq!(
        (failure.image.as_str(), &*failure.operation, failure.lba, failure.held),
        ("disk.img", "write", Some(8), true)
    );
    // Nothing happens by itself, and its staging buffer stays as it is.
    assert_eq!((rig.poll(), rig.taken()), (None, 1));
    assert!(rig.handle.arm() && rig.handle.staging(3).is_empty() && !rig.handle.staging(4).is_empty());
    rig.held_requests.retry();
    assert!(!rig.held_requests.wants_pause());
    assert!(!rig.handle.arm(), "there is something to poll for");
    assert_eq!(rig.poll(), Some((3, Ok(()))));
    assert_eq!(*rig.script.taken.lock().unwrap(), [(WRITE, DATA.to_vec()), (WRITE, DATA.to_vec())]);
    assert_eq!((rig.held_requests.held(), rig.poll(), rig.handle.arm()), (0, None, true));
    let stats = rig.backend.meters().stats();
    assert_eq!(
        (stats.write.operations, stats.write.errors, stats.write.bytes, stats.retries),
        (1, 1, 4096, 1)
    );
}

#[test]
fn a_second_failure_is_held_again() {
    let mut rig = Rig::new(OnError::Stop, OnError::Stop);
    rig.fail_next(&[IoErrorKind::Medium, IoErrorKind::Medium]);
    rig.submit(0, READ);
    assert_eq!(rig.poll(), None);
    rig.held_requests.retry();
    assert_eq!(rig.poll(), None);
    assert!(rig.held_requests.wants_pause() && rig.held_requests.held() == 1);
    assert_eq!(rig.failures.try_iter().filter(|failure| failure.held).count(), 2);
    rig.held_requests.retry();
    assert_eq!(rig.poll(), Some((0, Ok(()))));
}

#[test]
fn flushes_and_stable_writes_are_never_tried_again() {
    for (cache, op) in [
        (Cache::WriteBack, Op::Flush),
        (Cache::WriteBack, Op::Write { extent: EXTENT, fua: true }),
        (Cache::WriteThrough, WRITE),
    ] {
        for kind in [IoErrorKind::NoSpace, IoErrorKind::Medium] {
            let mut rig = Rig::with_cache(OnError::Stop, OnError::Stop, cache);
            rig.fail_next(&[kind]);
            rig.submit(1, op);
            assert_eq!(rig.poll(), Some((1, Err(kind))), "{op:?}");
            assert!(!rig.held_requests.wants_pause() && !rig.failures.try_recv().unwrap().held);
            rig.held_requests.retry();
            assert_eq!((rig.poll(), rig.taken()), (None, 1), "{op:?}");
        }
    }
}

#[test]
fn on_a_latched_image_no_write_is_held() {
    let mut rig = Rig::new(OnError::Stop, OnError::Stop);
    rig.fail_next(&[IoErrorKind::Medium, IoErrorKind::Latched, IoErrorKind::Medium]);
    rig.submit(0, WRITE);
    assert_eq!(rig.poll(), None);
    // A flush fails meanwhile; the write that was held is tried, and refused by the latch.
    rig.backend.latch(LatchCause { what: Durable::Flush, errno: None, lba: Some(Lba(0)) });
    rig.held_requests.retry();
    assert_eq!(rig.poll(), Some((0, Err(IoErrorKind::Latched))));
    rig.submit(0, WRITE);
    assert_eq!(rig.poll(), Some((0, Err(IoErrorKind::Medium))));
    assert_eq!(rig.held_requests.held(), 0);
}

#[test]
fn each_policy_holds_what_it_names() {
    use IoErrorKind::{Medium, Memory, NoSpace, OutOfRange, ReadOnly, Unsupported};
    let held = |policy, kind| {
        let mut rig = Rig::new(policy, policy);
        rig.fail_next(&[kind]);
        rig.submit(0, WRITE);
        rig.poll().is_none()
    };
    for kind in [Medium, NoSpace] {
        assert!(!held(OnError::Report, kind) && held(OnError::Stop, kind));
        assert_eq!(held(OnError::Enospc, kind), kind == NoSpace);
    }
    // What the request itself is to blame for does not go away.
    for kind in [ReadOnly, OutOfRange, Memory, Unsupported] {
        assert!(!held(OnError::Stop, kind), "{kind:?}");
    }
    assert_eq!(
        ["report", "stop", "enospc"].map(str::parse),
        [Ok(OnError::Report), Ok(OnError::Stop), Ok(OnError::Enospc)]
    );
    assert!("ignore".parse::<OnError>().is_err());
    assert_eq!(ErrorPolicy::default(), ErrorPolicy { read: OnError::Report, write: OnError::Enospc });
}

#[test]
fn a_reset_ends_what_is_held_with_its_error_and_holds_nothing_more() {
    let mut rig = Rig::new(OnError::Stop, OnError::Stop);
    rig.fail_next(&[IoErrorKind::NoSpace, IoErrorKind::Medium, IoErrorKind::Medium]);
    rig.submit(0, WRITE);
    rig.submit(1, READ);
    assert_eq!(rig.poll(), None);
    rig.handle.drain(true);
    assert!(!rig.handle.arm());
    let mut ends = [rig.poll().unwrap(), rig.poll().unwrap()];
    ends.sort_by_key(|&(slot, _)| slot);
    assert_eq!(ends, [(0, Err(IoErrorKind::NoSpace)), (1, Err(IoErrorKind::Medium))]);
    rig.submit(0, WRITE);
    assert_eq!(rig.poll(), Some((0, Err(IoErrorKind::Medium))));
    assert_eq!((rig.held_requests.held(), rig.taken()), (0, 3));
    // The next client's failures are held again.
    rig.handle.drain(false);
    rig.fail_next(&[IoErrorKind::Medium]);
    rig.submit(0, WRITE);
    assert_eq!((rig.poll(), rig.held_requests.held()), (None, 1));
}

#[test]
fn the_end_of_the_server_ends_what_is_held() {
    let mut rig = Rig::new(OnError::Stop, OnError::Stop);
    rig.fail_next(&[IoErrorKind::Medium]);
    rig.submit(0, WRITE);
    assert_eq!(rig.poll(), None);
    rig.held_requests.end();
    assert!(!rig.handle.arm());
    assert_eq!(rig.poll(), Some((0, Err(IoErrorKind::Medium))));
    rig.fail_next(&[IoErrorKind::Medium]);
    rig.submit(0, WRITE);
    assert_eq!(rig.poll(), Some((0, Err(IoErrorKind::Medium))));
}

#[test]
fn a_fence_or_the_end_of_a_handle_forgets_what_is_held() {
    let mut rig = Rig::new(OnError::Stop, OnError::Stop);
    rig.fail_next(&[IoErrorKind::Medium, IoErrorKind::Medium]);
    rig.submit(0, WRITE);
    assert_eq!((rig.poll(), rig.held_requests.held()), (None, 1));
    assert!(rig.handle.cancel_in_flight());
    assert_eq!(rig.held_requests.held(), 0);
    rig.held_requests.retry();
    assert_eq!((rig.poll(), rig.taken()), (None, 1));
    rig.submit(0, WRITE);
    assert_eq!((rig.poll(), rig.held_requests.held()), (None, 1));
    rig.handle = rig.backend.handle().unwrap();
    assert_eq!(rig.held_requests.held(), 0);
    assert_eq!(rig.backend.meters().stats().write.errors, 2);
}

#[test]
fn a_busy_storage_delays_the_next_try_without_losing_it() {
    let mut rig = Rig::new(OnError::Stop, OnError::Stop);
    rig.fail_next(&[IoErrorKind::Medium, IoErrorKind::Medium]);
    rig.submit(0, WRITE);
    rig.submit(1, WRITE);
    assert_eq!((rig.poll(), rig.held_requests.held()), (None, 2));
    rig.script.busy.store(true, Ordering::Relaxed);
    rig.held_requests.retry();
    assert_eq!(rig.poll(), None);
    // Sleeps until the storage has room: no turning in circles.
    assert!(rig.handle.arm());
    rig.script.busy.store(false, Ordering::Relaxed);
    let mut ends = [rig.poll().unwrap(), rig.poll().unwrap()];
    ends.sort_by_key(|&(slot, _)| slot);
    assert_eq!(ends, [(0, Ok(())), (1, Ok(()))]);
}

#[test]
fn more_slots_than_are_kept_track_of_are_served_and_reported() {
    let mut rig = Rig::new(OnError::Stop, OnError::Stop);
    rig.fail_next(&[IoErrorKind::Medium]);
    rig.submit(999, WRITE);
    assert_eq!(rig.poll(), Some((999, Err(IoErrorKind::Medium))));
}

#[test]
fn nobody_who_listens_does_not_matter() {
    let mut rig = Rig::new(OnError::Stop, OnError::Stop);
    rig.fail_next(&[IoErrorKind::Medium; 20]);
    for slot in 0..20 {
        rig.submit(slot, WRITE);
    }
    assert_eq!((rig.poll(), rig.held_requests.held()), (None, 20));
    assert!(rig.held_requests.wants_pause());
    assert_eq!(rig.failures.try_iter().count(), 16);
}
