//! Recordings that are cut off, damaged or appended to.

use blk_core::memory::GuestMemory as _;
use blk_core::op::{Op, Segment};
use blk_core::storage::{Cache, IoErrorKind};
use blk_core::units::{Extent, GuestAddr, Tag};

use super::open;
use super::scripted::{Bench, write};
use crate::replay::{Data, Event, Log, LogError, What};

/// One record of each kind.
fn bench() -> Bench {
    let mut bench = Bench::new(Cache::WriteBack);
    bench.run(0, write(1, 1), 7);
    bench.run(0, write(2, 2), 0);
    bench.run(1, Op::Read { extent: Extent::new(0, 4) }, 0);
    bench.mark("ack fsync f1");
    bench.depth(0);
    assert!(bench.submit(0, Op::Flush, 0).is_err());
    bench.depth(9);
    bench.submit(0, Op::Discard { extent: Extent::new(0, 1) }, 0).unwrap();
    assert!(bench.handles[0].cancel_in_flight());
    let failed = bench.submit(1, Op::Flush, 0).unwrap();
    bench.end(1, failed, Err(IoErrorKind::Medium));
    bench.poll(1).unwrap();
    crate::backend::Backend::resize(bench.recorder.as_ref().unwrap(), Some(1 << 17)).unwrap();
    bench
}

#[test]
fn what_was_recorded_is_read() {
    let mut bench = bench();
    bench.handles.clear();
    bench.recorder = None;
    let log = open(&bench);
    assert_eq!((log.cut_bytes(), log.marks().len(), log.marks()[0].text.as_str()), (0, 1, "ack fsync f1"));
    let submits = log.events().iter().filter_map(|event| match event.what {
        What::Submit { op, data } => Some((event.handle, op, data)),
        _ => None,
    });
    let submits = submits.collect::<Vec<_>>();
    assert!(matches!(submits[0], (0, op, Data::At(_)) if op == write(1, 1)));
    assert_eq!(submits[1], (0, write(2, 2), Data::Zeroes), "all zeroes: left out");
    assert_eq!(submits[2], (1, Op::Read { extent: Extent::new(0, 4) }, Data::None));
    assert_eq!(log.events().last(), Some(&Event { handle: 0, what: What::End }));
    assert_eq!(log.info_at(log.positions()).unwrap().sectors, 256);
}

#[test]
fn a_tail_cut_off_at_any_byte_leaves_the_records_before_it() {
    let bench = bench();
    let whole = open(&bench);
    let bytes = std::fs::read(bench.path()).unwrap();
    let cut = bench.out("cut");
    let mut lengths = Vec::new();
    for len in 0..=bytes.len() {
        std::fs::write(&cut, &bytes[..len]).unwrap();
        match Log::open(&cut) {
            Err(LogError::NotARecording { .. }) => assert!(len < 64, "{len}"),
            Err(error) => panic!("{len}: {error}"),
            Ok(log) => {
                assert_eq!(log.events(), &whole.events()[..log.events().len()]);
                assert_eq!(log.whole_bytes() + log.cut_bytes(), len as u64);
                lengths.push(log.events().len());
            }
        }
    }
    assert!(lengths.is_sorted() && lengths[0] == 0 && lengths.last() == Some(&whole.events().len()));
}

#[test]
fn every_flipped_bit_is_found_and_its_place_named() {
    let bench = bench();
    let bytes = std::fs::read(bench.path()).unwrap();
    let flipped = bench.out("flipped");
    // Of each byte one bit: a CRC treats them alike.
    for bit in (0..bytes.len()).map(|byte| byte * 8 + byte % 8) {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&flipped, &bytes).unwrap();
        match Log::open(&flipped) {
            Err(LogError::NotARecording { .. }) => assert!(bit < 64, "bit {bit}"),
            Err(LogError::Damaged { offset, .. }) => {
                assert!(offset <= bit as u64 / 8, "bit {bit}: {offset}");
                assert!(offset + 1000 > bit as u64 / 8, "bit {bit}: {offset}");
            }
            other => panic!("bit {bit}: {:?}", other.map(|log| log.events().len())),
        }
    }
}

#[test]
fn another_version_and_another_file_are_refused() {
    let bench = bench();
    let mut bytes = std::fs::read(bench.path()).unwrap();
    let other = bench.out("other");
    std::fs::write(&other, b"an image, for example").unwrap();
    assert!(matches!(Log::open(&other), Err(LogError::NotARecording { .. })));
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&other, bytes).unwrap();
    let error = Log::open(&other).unwrap_err();
    assert!(matches!(error, LogError::Version { version: 2, .. }), "{error}");
}

#[test]
fn a_server_that_comes_back_cuts_the_tail_off_and_goes_on() {
    let mut bench = bench();
    bench.kill();
    let bytes = std::fs::read(bench.path()).unwrap();
    std::fs::write(bench.path(), &bytes[..bytes.len() - 3]).unwrap();
    let cut = open(&bench);
    assert!(cut.cut_bytes() > 0);
    bench.start();
    bench.run(0, write(5, 1), 9);
    let log = open(&bench);
    assert_eq!((log.cut_bytes(), &log.events()[..cut.events().len()]), (0, cut.events()));
    let sessions = log.events().iter().filter(|event| matches!(event.what, What::Session { .. })).count();
    assert_eq!(sessions, 2);
}

#[test]
fn what_is_recorded_is_what_is_written_whatever_the_guest_does_meanwhile() {
    let mut bench = Bench::new(Cache::WriteBack);
    let tag = bench.submit(0, write(0, 1), 7).unwrap();
    bench.memory.write(GuestAddr(0), &[8; 512]).unwrap();
    bench.end(0, tag, Ok(()));
    bench.poll(0).unwrap();
    let log = open(&bench);
    assert_eq!((bench.disk.byte(0), bench.disk.byte(511)), (7, 7));
    assert_eq!(super::allowed(&log, log.positions(), 1)[0], [super::INITIAL, 7].into());
}

#[test]
fn staged_data_is_recorded_and_its_buffer_closed_until_it_is_written() {
    let mut bench = Bench::new(Cache::WriteBack);
    bench.handles[0].staging(3)[..512].fill(5);
    bench.memory.write(GuestAddr(0), &[6; 512]).unwrap();
    let segments =
        [Segment::Staging { offset: 0, len: 512 }, Segment::Guest { addr: GuestAddr(0), len: 512 }];
    let tag = Tag { slot: 3, generation: 1 };
    let memory = bench.memory.clone();
    let _ = bench.handles[0].submit(&memory, tag, write(0, 2), &segments).unwrap();
    assert!(bench.handles[0].staging(3).is_empty() && !bench.handles[0].staging(4).is_empty());
    bench.end(0, tag, Ok(()));
    bench.poll(0).unwrap();
    assert!(!bench.handles[0].staging(3).is_empty());
    assert_eq!((bench.disk.byte(0), bench.disk.byte(512)), (5, 6));
}

#[test]
fn memory_that_is_none_is_refused_without_the_host() {
    let mut bench = Bench::new(Cache::WriteBack);
    let memory = bench.memory.clone();
    let before = bench.position();
    for (segment, kind) in [
        (Segment::Guest { addr: GuestAddr(1 << 40), len: 512 }, IoErrorKind::Memory),
        (Segment::Guest { addr: GuestAddr(0), len: 511 }, IoErrorKind::OutOfRange),
        (Segment::Staging { offset: u32::MAX, len: 512 }, IoErrorKind::Memory),
    ] {
        let refused = bench.handles[0].submit(&memory, Tag::default(), write(0, 1), &[segment]).unwrap();
        assert_eq!(refused.done().unwrap().unwrap_err().kind, kind);
    }
    assert_eq!(bench.position(), before);
}

#[test]
fn a_recording_that_another_server_writes_is_refused() {
    let bench = Bench::new(Cache::WriteBack);
    let file = std::fs::File::open(bench.path()).unwrap();
    assert!(matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
}
