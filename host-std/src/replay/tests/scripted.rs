//! A disk of which every operation is in flight until the test ends it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use blk_core::memory::GuestMemory as _;
use blk_core::op::{Op, Segment};
use blk_core::storage::{Busy, Cache, Completion, Info, IoError, IoErrorKind, Storage, Submission};
use blk_core::units::{Extent, GuestAddr, Tag};
use rustix::event::{EventfdFlags, eventfd};

use crate::backend::{Backend, Counts, Handle, LatchCause, OpenError};
use crate::memory::MappedMemory;
use crate::record::Recorder;

/// What every byte of the image holds at the start.
pub(super) const INITIAL: u8 = 0xee;
/// Sectors of the image.
pub(super) const SECTORS: u64 = 128;

/// What of an operation is left to do.
struct InFlight {
    handle: usize,
    tag: Tag,
    op: Op,
    memory: MappedMemory,
    segments: Vec<Segment>,
}

struct Disk {
    info: Info,
    bytes: Vec<u8>,
    in_flight: Vec<InFlight>,
    ended: Vec<(usize, Completion)>,
    handles: usize,
    /// Operations that a handle takes before it is busy.
    depth: usize,
}

#[derive(Clone)]
pub(super) struct Scripted(Arc<Mutex<Disk>>);

struct ScriptedHandle {
    disk: Scripted,
    index: usize,
    info: Info,
    staging: Vec<u8>,
    wake: OwnedFd,
}

impl Scripted {
    fn with<T>(&self, f: impl FnOnce(&mut Disk) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    /// Ends an operation.
    pub(super) fn end(&self, handle: usize, tag: Tag, result: Result<(), IoErrorKind>) {
        self.with(|disk| {
            let found = disk.in_flight.iter().position(|o| o.handle == handle && o.tag == tag);
            let InFlight { op, memory, segments, .. } = disk.in_flight.remove(found.expect("in flight"));
            let at = op.extent().map_or(0, |extent| extent.start.0 as usize * 512);
            if let (Op::Write { extent, .. }, Ok(())) = (op, result) {
                let mut at = at;
                for segment in segments {
                    let Segment::Guest { addr, len } = segment else { panic!("a copy is in memory") };
                    memory.read(addr, &mut disk.bytes[at..at + len as usize]).unwrap();
                    at += len as usize;
                }
                assert_eq!(at, extent.end().unwrap() as usize * 512);
            }
            disk.ended.push((handle, Completion { tag, result: result.map_err(IoError::from) }));
        });
    }

    pub(super) fn byte(&self, at: usize) -> u8 {
        self.with(|disk| disk.bytes[at])
    }
}

impl Backend for Scripted {
    fn handle(&self) -> Result<Box<dyn Handle>, OpenError> {
        let (index, info) = self.with(|disk| {
            disk.handles += 1;
            (disk.handles - 1, disk.info)
        });
        let wake = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        Ok(Box::new(ScriptedHandle { disk: self.clone(), index, info, staging: vec![0; 4096], wake }))
    }

    fn info(&self) -> Info {
        self.with(|disk| disk.info)
    }

    fn resize(&self, bytes: Option<u64>) -> Result<Info, OpenError> {
        self.with(|disk| {
            disk.info.sectors = bytes.unwrap_or(0) / 512;
            Ok(disk.info)
        })
    }

    fn counts(&self) -> Counts {
        Counts::default()
    }

    fn latched(&self) -> Option<LatchCause> {
        None
    }

    fn latch(&self, _: LatchCause) {}

    fn set_client_latch(&self, _: Option<LatchCause>) {}
}

impl Storage<MappedMemory> for ScriptedHandle {
    fn info(&self) -> &Info {
        &self.info
    }

    fn submit(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        self.disk.with(|disk| {
            // The recorder reads the image through before anything else.
            if let (Op::Read { extent }, 0) = (op, self.index) {
                let [Segment::Guest { addr, .. }] = segments else { panic!("one segment") };
                let range = extent.start.0 as usize * 512..extent.end().unwrap() as usize * 512;
                memory.write(*addr, &disk.bytes[range]).unwrap();
                disk.ended.push((self.index, Completion { tag, result: Ok(()) }));
                return Ok(Submission::Pending);
            }
            if disk.in_flight.iter().filter(|pending| pending.handle == self.index).count() == disk.depth {
                return Err(Busy);
            }
            let (memory, segments) = (memory.clone(), segments.to_vec());
            disk.in_flight.push(InFlight { handle: self.index, tag, op, memory, segments });
            Ok(Submission::Pending)
        })
    }

    fn poll(&mut self, _: &MappedMemory) -> Option<Completion> {
        self.disk.with(|disk| {
            let found = disk.ended.iter().position(|(handle, _)| *handle == self.index)?;
            Some(disk.ended.remove(found).1)
        })
    }

    fn staging(&mut self, _: u16) -> &mut [u8] {
        &mut self.staging
    }

    fn cancel_in_flight(&mut self) -> bool {
        self.disk.with(|disk| {
            disk.in_flight.retain(|pending| pending.handle != self.index);
            disk.ended.retain(|(handle, _)| *handle != self.index);
        });
        true
    }
}

impl Handle for ScriptedHandle {
    fn arm(&mut self) -> bool {
        self.disk.with(|disk| !disk.ended.iter().any(|(handle, _)| *handle == self.index))
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// A recorder over a scripted disk, with two handles.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    pub(super) disk: Scripted,
    pub(super) recorder: Option<Recorder>,
    pub(super) handles: Vec<Box<dyn Handle>>,
    pub(super) memory: MappedMemory,
    tags: u16,
}

impl Bench {
    pub(super) fn new(cache: Cache) -> Self {
        Self::with(Info { fua: true, discard: true, ..info(cache) })
    }

    pub(super) fn with(info: Info) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bytes = vec![INITIAL; info.sectors as usize * 512];
        std::fs::write(dir.path().join("base"), &bytes).unwrap();
        let disk =
            Disk { info, bytes, in_flight: Vec::new(), ended: Vec::new(), handles: 0, depth: usize::MAX };
        let memory = MappedMemory::anonymous(&[(GuestAddr(0), 1 << 16)]).unwrap();
        let disk = Scripted(Arc::new(Mutex::new(disk)));
        let mut bench = Self { dir, disk, recorder: None, handles: Vec::new(), memory, tags: 0 };
        bench.start();
        bench
    }

    /// A server starts, after another one if there was one.
    pub(super) fn start(&mut self) {
        let recorder = Recorder::open(Arc::new(self.disk.clone()), self.path()).unwrap();
        self.handles = (0..2).map(|_| recorder.handle().unwrap()).collect();
        self.recorder = Some(recorder);
    }

    /// The server is killed: it says nothing at the end, and what was in flight is not heard of again.
    pub(super) fn kill(&mut self) {
        let bytes = std::fs::read(self.path()).unwrap();
        self.handles.clear();
        self.recorder = None;
        std::fs::write(self.path(), bytes).unwrap();
        self.disk.with(|disk| {
            disk.in_flight.clear();
            disk.ended.clear();
        });
    }

    pub(super) fn depth(&self, depth: usize) {
        self.disk.with(|disk| disk.depth = depth);
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub(super) fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    pub(super) fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn position(&self) -> u64 {
        self.recorder.as_ref().unwrap().position()
    }

    pub(super) fn mark(&self, text: &str) {
        self.recorder.as_ref().unwrap().mark(text).unwrap();
    }

    /// Submits an operation whose data, if it has any, is `value` in every byte.
    pub(super) fn submit(&mut self, handle: usize, op: Op, value: u8) -> Result<Tag, Busy> {
        self.tags += 1;
        let tag = Tag { slot: self.tags % 64, generation: self.tags };
        let bytes = match op {
            Op::Read { extent } | Op::Write { extent, .. } => extent.bytes().unwrap() as usize,
            _ => 0,
        };
        self.memory.write(GuestAddr(0), &vec![value; bytes]).unwrap();
        let segment = [Segment::Guest { addr: GuestAddr(0), len: bytes as u32 }];
        let segments = if bytes == 0 { &[][..] } else { &segment };
        self.handles[handle].submit(&self.memory, tag, op, segments).map(|_| tag)
    }

    /// Ends an operation; its completion is not polled.
    pub(super) fn end(&mut self, handle: usize, tag: Tag, result: Result<(), IoErrorKind>) {
        // Handle 0 of each recorder is the one that reads the image; those of the second session come later.
        let first = self.disk.with(|disk| disk.handles) - 2;
        self.disk.end(first + handle, tag, result);
    }

    pub(super) fn poll(&mut self, handle: usize) -> Option<Completion> {
        self.handles[handle].poll(&self.memory)
    }

    /// Submits, ends and polls.
    pub(super) fn run(&mut self, handle: usize, op: Op, value: u8) {
        let tag = self.submit(handle, op, value).unwrap();
        self.end(handle, tag, Ok(()));
        assert_eq!(self.poll(handle).map(|completion| completion.tag), Some(tag));
    }
}

pub(super) fn info(cache: Cache) -> Info {
    blk_core::ram::plain_info(SECTORS * 512, cache)
}

pub(super) const fn write(start: u64, sectors: u64) -> Op {
    Op::Write { extent: Extent::new(start, sectors), fua: false }
}

pub(super) const fn fua(start: u64, sectors: u64) -> Op {
    Op::Write { extent: Extent::new(start, sectors), fua: true }
}
