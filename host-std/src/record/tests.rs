//! The recorder over a real image, and over a recording that cannot be written.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blk_core::memory::GuestMemory as _;
use blk_core::op::{Op, Segment};
use blk_core::storage::{CacheMode, IoError, IoErrorKind, Storage as _};
use blk_core::units::{Extent, GuestAddr, Tag};
use fastrand::Rng;

use super::handle::RecordedHandle;
use super::writer::Writer;
use super::*;
use crate::backend::{FileBackend, FileOptions};
use crate::memory::MappedMemory;
use crate::replay::{Base, Image};

const SECTORS: u64 = 256;

fn image(dir: &Path, bytes: &[u8]) -> Arc<FileBackend> {
    let path = dir.join("image");
    std::fs::write(&path, bytes).unwrap();
    Arc::new(FileBackend::open(path, &FileOptions::new(CacheMode::WriteBack)).unwrap())
}

fn memory() -> MappedMemory {
    MappedMemory::anonymous(&[(GuestAddr(0), 1 << 16)]).unwrap()
}

/// Runs one operation to its end.
fn run(handle: &mut dyn Handle, memory: &MappedMemory, op: Op, segments: &[Segment]) -> Result<(), IoError> {
    if let Some(result) = handle.submit(memory, Tag::default(), op, segments).unwrap().done() {
        return result;
    }
    let start = Instant::now();
    loop {
        if let Some(completion) = handle.poll(memory) {
            return completion.result;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "no completion within ten seconds");
        if handle.arm() {
            let wake = handle.wake_fd();
            let fd = rustix::event::PollFd::new(&wake, rustix::event::PollFlags::IN);
            let _ = rustix::event::poll(&mut [fd], None);
        }
    }
}

#[test]
fn the_image_is_rebuilt_at_every_position() {
    for empty in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = Rng::with_seed(3);
        let start: Vec<u8> = (0..SECTORS * 512).map(|_| if empty { 0 } else { rng.u8(..) }).collect();
        let recorder = Recorder::open(image(dir.path(), &start), dir.path().join("log")).unwrap();
        let mut handles: Vec<_> = (0..2).map(|_| recorder.handle().unwrap()).collect();
        let memory = memory();
        let (mut model, mut history) = (start.clone(), vec![(0, start.clone())]);
        for _ in 0..200 {
            let at = rng.u64(..SECTORS);
            let extent = Extent::new(at, rng.u64(1..=16.min(SECTORS - at)));
            let range = (at * 512) as usize..extent.end().unwrap() as usize * 512;
            let data: Vec<u8> = range.clone().map(|_| rng.u8(..)).collect();
            let handle = &mut *handles[rng.usize(..2)];
            let result = match rng.u8(..5) {
                0 => run(handle, &memory, Op::Flush, &[]),
                1 => {
                    model[range].fill(0);
                    run(handle, &memory, Op::WriteZeroes { extent, may_unmap: rng.bool() }, &[])
                }
                _ => {
                    // Two segments, in memory that is elsewhere each.
                    let (first, second) = data.split_at(data.len() / 3);
                    memory.write(GuestAddr(7), first).unwrap();
                    memory.write(GuestAddr(40_000), second).unwrap();
                    let segments = [(7, first), (40_000, second)].map(|(at, piece): (u64, &[u8])| {
                        Segment::Guest { addr: GuestAddr(at), len: piece.len() as u32 }
                    });
                    model[range].copy_from_slice(&data);
                    run(handle, &memory, Op::Write { extent, fua: false }, &segments)
                }
            };
            result.unwrap();
            history.push((recorder.position(), model.clone()));
        }
        drop((handles, recorder));
        assert!(std::fs::read(dir.path().join("image")).unwrap() == model);
        let base = dir.path().join("base");
        std::fs::write(&base, &start).unwrap();
        let log = Arc::new(Log::open(dir.path().join("log")).unwrap());
        assert_eq!(log.contents() == Contents::Zeroes, empty);
        let base = Arc::new(Base::open(&log, (!empty).then_some(&base)).unwrap());
        for (position, bytes) in history {
            let image = Image::live(&log, &base, position).unwrap();
            let mut read = vec![1; bytes.len()];
            image.read(0, &mut read).unwrap();
            assert!(read == bytes, "position {position}");
        }
    }
}

#[test]
fn many_operations_at_once_are_all_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(image(dir.path(), &[0; 1 << 17]), dir.path().join("log")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let mut handle = recorder.handle().unwrap();
            scope.spawn(move || {
                let memory = memory();
                for at in 0..100 {
                    memory.write(GuestAddr(0), &[at as u8 + 1; 512]).unwrap();
                    let extent = Extent::new(thread * 128 + at, 1);
                    let segment = Segment::Guest { addr: GuestAddr(0), len: 512 };
                    run(&mut *handle, &memory, Op::Write { extent, fua: false }, &[segment]).unwrap();
                }
            });
        }
    });
    drop(recorder);
    let log = Arc::new(Log::open(dir.path().join("log")).unwrap());
    let image = Image::live(&log, &Arc::new(Base::Zeroes), log.positions()).unwrap();
    let mut bytes = vec![0; 1 << 17];
    image.read(0, &mut bytes).unwrap();
    assert!(bytes == std::fs::read(dir.path().join("image")).unwrap());
    assert!(bytes[..100 * 512].chunks(512).zip(1..).all(|(sector, at)| sector == [at; 512]));
}

#[test]
fn a_recording_that_cannot_be_written_fails_writes_and_flushes_and_not_reads() {
    let dir = tempfile::tempdir().unwrap();
    let backend = image(dir.path(), &[7; 4096]);
    let (reader, pipe) = rustix::pipe::pipe().unwrap();
    let inner: Arc<dyn Backend> = backend;
    let writer = Writer::begin("log".into(), File::from(pipe), 0, inner.info());
    let writer = Arc::new(writer.unwrap_or_else(|_| panic!("a pipe can be written")));
    let mut handle = RecordedHandle::new(inner.handle().unwrap(), writer, Arc::new(Budget::new(1 << 20)), 0);
    // From here on a write to it says EPIPE.
    drop(reader);
    let memory = memory();
    memory.write(GuestAddr(0), &[9; 512]).unwrap();
    let segment = [Segment::Guest { addr: GuestAddr(0), len: 512 }];
    let extent = Extent::new(0, 1);
    let kind = |result: Result<(), IoError>| result.map_err(|error| error.kind);
    for _ in 0..2 {
        let write = run(&mut handle, &memory, Op::Write { extent, fua: false }, &segment);
        assert_eq!(kind(write), Err(IoErrorKind::Medium));
        assert_eq!(kind(run(&mut handle, &memory, Op::Flush, &[])), Err(IoErrorKind::Medium));
    }
    assert_eq!(run(&mut handle, &memory, Op::Read { extent }, &segment), Ok(()));
    let mut bytes = [0; 512];
    memory.read(GuestAddr(0), &mut bytes).unwrap();
    assert_eq!(bytes, [7; 512], "nothing was written that was not recorded");
}

#[test]
fn a_path_that_cannot_be_written_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let backend = image(dir.path(), &[0; 4096]);
    let error = Recorder::open(backend, dir.path().join("no/log")).err().unwrap().to_string();
    assert!(error.contains("no/log") && error.contains("--record"), "{error}");
}

/// Writes in each slot, as many as are taken.
fn fill(handle: &mut RecordedHandle, memory: &MappedMemory, slots: std::ops::Range<u16>, bytes: u32) -> u16 {
    let segment = [Segment::Guest { addr: GuestAddr(0), len: bytes }];
    let op = Op::Write { extent: Extent::new(0, u64::from(bytes) / 512), fua: false };
    let mut submit = |slot| handle.submit(memory, Tag { slot, generation: 0 }, op, &segment).is_ok();
    slots.take_while(|&slot| submit(slot)).count() as u16
}

fn handle_of(recorder: &Recorder) -> RecordedHandle {
    let inner = recorder.inner.handle().unwrap();
    RecordedHandle::new(inner, Arc::clone(&recorder.writer), Arc::clone(&recorder.memory), 0)
}

#[test]
fn one_turn_records_no_more_than_a_mebibyte_but_always_a_write() {
    const BYTES: u32 = 512 << 10;
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(image(dir.path(), &[0; 4 << 20]), dir.path().join("log")).unwrap();
    let memory = MappedMemory::anonymous(&[(GuestAddr(0), 4 << 20)]).unwrap();
    let mut handle = handle_of(&recorder);
    let deadline = Instant::now() + Duration::from_secs(60);
    let (mut taken, mut ended) = (0, 0);
    while ended < 20 {
        handle.begin_turn();
        // AHCI looks for what has ended before each command.
        ended += usize::from(handle.poll(&memory).is_some());
        let more = fill(&mut handle, &memory, taken..20, BYTES);
        taken += more;
        assert!(more <= 2, "{more} writes in one turn");
        // What was put off is not slept for.
        assert!(taken == 20 || more == 0 || !handle.arm());
        while handle.poll(&memory).is_some_and(|completion| completion.result == Ok(())) {
            ended += 1;
        }
        assert!(Instant::now() < deadline);
    }
    handle.begin_turn();
    assert_eq!(fill(&mut handle, &memory, 0..2, 2 << 20), 1, "larger than a turn's share, and alone");
    assert!(handle.poll(&memory).is_none_or(|completion| completion.result == Ok(())));
    assert_eq!(fill(&mut handle, &memory, 2..3, 512), 0, "a poll is no turn");
}

#[test]
fn the_data_of_writes_that_are_recorded_has_a_bounded_amount_of_memory() {
    const BYTES: u32 = 64 << 10;
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(image(dir.path(), &[0; 1 << 20]), dir.path().join("log")).unwrap();
    let recorder = recorder.with_memory(128 << 10);
    let memory = memory();
    let [mut one, mut other] = [(); 2].map(|()| handle_of(&recorder));
    assert_eq!(fill(&mut one, &memory, 0..9, BYTES), 2);
    assert_eq!(recorder.memory(), BudgetUse { used: 128 << 10, peak: 128 << 10, limit: 128 << 10 });
    assert_eq!(fill(&mut other, &memory, 0..9, BYTES), 1, "one of each handle, else nobody would wake it");
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut ended = 0;
    while ended < 3 {
        ended += [&mut one, &mut other].into_iter().filter_map(|handle| handle.poll(&memory)).count();
        assert!(Instant::now() < deadline);
    }
    assert_eq!(recorder.memory().used, 0);
    assert_eq!(fill(&mut one, &memory, 0..9, BYTES), 2);
}

#[test]
fn a_large_write_is_recorded_and_done_in_pieces_and_completes_once() {
    const BYTES: usize = (5 << 19) + 512;
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(image(dir.path(), &[0; 4 << 20]), dir.path().join("log")).unwrap();
    let mut rng = Rng::with_seed(5);
    let data: Vec<u8> = (0..BYTES).map(|_| rng.u8(..)).collect();
    let memory = MappedMemory::anonymous(&[(GuestAddr(0), 4 << 20)]).unwrap();
    memory.write(GuestAddr(7), &data).unwrap();
    let mut handle = recorder.handle().unwrap();
    let segments = [(7, 1000), (1007, BYTES - 1000)]
        .map(|(addr, len): (u64, usize)| Segment::Guest { addr: GuestAddr(addr), len: len as u32 });
    let op = Op::Write { extent: Extent::new(3, BYTES as u64 / 512), fua: false };
    run(&mut *handle, &memory, op, &segments).unwrap();
    assert!(handle.poll(&memory).is_none());
    // The session, and each of three pieces submitted and completed.
    assert_eq!(recorder.position(), 7);
    run(&mut *handle, &memory, Op::Flush, &[]).unwrap();
    assert_eq!(
        run(&mut *handle, &memory, op, &segments[..1]).map_err(|e| e.kind),
        Err(IoErrorKind::OutOfRange)
    );
    drop((handle, recorder));
    let written = std::fs::read(dir.path().join("image")).unwrap();
    assert!(written[3 * 512..][..BYTES] == data && written[3 * 512 + BYTES..].iter().all(|&byte| byte == 0));
    let log = Arc::new(Log::open(dir.path().join("log")).unwrap());
    let mut replayed = vec![1; 4 << 20];
    let replay = Image::live(&log, &Arc::new(Base::Zeroes), log.positions()).unwrap();
    replay.read(0, &mut replayed).unwrap();
    assert!(replayed == written);
}
