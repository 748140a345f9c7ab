//! The parsing of events, and a real loop device traced in the kernel.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::ReadWriteFlags;
use tempfile::NamedTempFile;

use super::*;
use crate::probe::{Verdict, probe};

fn rwbs(text: &str) -> (bool, What, bool) {
    let rwbs = Rwbs::parse(text).unwrap();
    (rwbs.preflush, rwbs.what, rwbs.fua)
}

#[test]
fn an_f_before_the_operation_is_a_preflush_and_one_after_it_is_fua() {
    assert_eq!(rwbs("W"), (false, What::Write, false));
    assert_eq!(rwbs("WS"), (false, What::Write, false));
    assert_eq!(rwbs("WFS"), (false, What::Write, true));
    assert_eq!(rwbs("WSM"), (false, What::Write, false));
    assert_eq!(rwbs("FWS"), (true, What::Write, false));
    assert_eq!(rwbs("FWFSM"), (true, What::Write, true));
    assert_eq!(rwbs("F"), (false, What::Flush, false));
    assert_eq!(rwbs("FF"), (true, What::Flush, false), "as the kernel's flush machinery sends it");
    assert_eq!(rwbs("FS"), (false, What::Flush, false));
    assert_eq!(rwbs("D"), (false, What::Discard, false));
    assert_eq!(rwbs("DE"), (false, What::Discard, false));
    assert_eq!(rwbs("WZS"), (false, What::WriteZeroes, false));
    assert_eq!(rwbs("N"), (false, What::None, false));
    assert_eq!(rwbs("RA"), (false, What::Other, false));
    assert_eq!(Rwbs::parse(""), None);
}

#[test]
fn lines_are_counted_by_device_and_a_flush_once() {
    let text = "\
# tracer: nop
#
block_rq_issue: 7,0 WS 4096 () 8 + 8 none,0,0 [prog]
block_rq_issue: 7,1 WS 4096 () 8 + 8 none,0,0 [prog]
block_rq_issue: 7,0 FF 0 () 0 + 0 none,0,0 [kworker/0:1H]
block_rq_issue: 7,0 WFS 512 () 16 + 1 none,0,0 [a + 9 b]
block_rq_issue: 7,0 D 4096 () 0 + 8 none,0,0 [prog]
block_rq_issue: 7,0 N 4096 () 0 + 8 none,0,0 [prog]
block_rq_issue: 7,0 N 0 (12 00 00) 0 + 0 none,0,0 [prog]
block_rq_issue: 7,0 RA 4096 () 0 + 8 none,0,0 [block_rq_issue: 7,0 WS 4096 () 8 + 8]
";
    let expected = Counts { writes: 2, flushes: 1, fua_writes: 1, discards: 1, write_zeroes: 1 };
    assert_eq!(count(text, "block_rq_issue", "7,0"), expected);
    let text = "block_bio_queue: 9,0 FWS 0 + 0 [prog]\nblock_bio_queue: 9,0 FWFS 8 + 8 [prog]\n";
    let expected = Counts { writes: 1, flushes: 2, fua_writes: 1, ..Counts::default() };
    assert_eq!(count(text, "block_bio_queue", "9,0"), expected, "a write of nothing is a flush");
}

#[test]
fn lost_events_are_seen() {
    let stats = "entries: 7\noverrun: 3\ncommit overrun: 0\nbytes: 9\ndropped events: 2\nread events: 5\n";
    assert_eq!(lost_in(stats), 5);
    assert_eq!(lost_in("entries: 7\noverrun: 0\n"), 0);
}

#[test]
fn what_cannot_be_traced_is_named() {
    assert!(matches!(BlockTrace::start(4000, 1), Err(TraceError::NoDevice(4000, 1))));
}

#[repr(align(4096))]
struct Page([u8; 4096]);

/// An image behind a loop device, open O_DIRECT; or the reason why there is none.
fn image(direct_io: bool) -> Option<(NamedTempFile, LoopDevice, File)> {
    let backing = NamedTempFile::new().unwrap();
    backing.as_file().set_len(1 << 20).unwrap();
    let device = match LoopDevice::attach(backing.path(), direct_io) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(device.path())
        .unwrap();
    Some((backing, device, file))
}

/// What reaches the driver of `device` while `act` runs; `None`, with the reason printed, where that cannot be traced.
fn traced(device: &LoopDevice, act: impl FnOnce()) -> Option<Counts> {
    let (major, minor) = device.dev();
    match BlockTrace::start(major, minor) {
        Ok(trace) => {
            act();
            Some(trace.stop().unwrap())
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

#[test]
fn writes_flushes_and_dsync_writes_are_seen_to_leave_the_host() {
    for direct_io in [false, true] {
        let Some((_backing, device, file)) = image(direct_io) else { return };
        let page = Box::new(Page([7; 4096]));
        let Some(counts) = traced(&device, || file.write_all_at(&page.0, 0).unwrap()) else { return };
        assert_eq!(counts, Counts { writes: 1, ..Counts::default() }, "O_DIRECT alone flushes nothing");

        let counts = traced(&device, || file.sync_data().unwrap()).unwrap();
        assert_eq!(counts, Counts { flushes: 1, ..Counts::default() });
        let counts = traced(&device, || file.sync_data().unwrap()).unwrap();
        assert_eq!(counts.flushes, 1, "with nothing dirty, too");

        let counts = traced(&device, || {
            let data = [IoSlice::new(&page.0)];
            assert_eq!(rustix::io::pwritev2(&file, &data, 8192, ReadWriteFlags::DSYNC), Ok(4096));
        })
        .unwrap();
        assert_eq!(counts.writes, 1, "{counts:?}");
        assert!(counts.fua_writes == 1 || counts.flushes >= 1, "{counts:?}");
    }
}

#[test]
fn a_buffer_that_overflows_is_an_error_and_not_a_low_count() {
    let Some((_backing, device, file)) = image(false) else { return };
    let (major, minor) = device.dev();
    let trace = match BlockTrace::start_with_buffer(major, minor, "4") {
        Ok(trace) => trace,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let page = Box::new(Page([7; 4096]));
    for _ in 0..1000 {
        file.write_all_at(&page.0, 0).unwrap();
    }
    assert!(matches!(trace.stop(), Err(TraceError::Lost(_))));
}

#[test]
fn punched_holes_are_seen_as_write_zeroes_or_discards_and_flush_nothing() {
    let Some((_backing, device, file)) = image(false) else { return };
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let Some(counts) = traced(&device, || rustix::fs::fallocate(&file, punch, 0, 65536).unwrap()) else {
        return;
    };
    assert_eq!((counts.flushes, counts.writes), (0, 0), "{counts:?}");
    assert!(counts.write_zeroes + counts.discards >= 1, "{counts:?}");
}

/// Of /sys/block/X/queue/write_cache: after `write through` the kernel sends no flush, and the probe says so.
#[test]
fn a_write_through_queue_gets_no_flush_and_the_probe_reports_it() {
    let Some((_backing, device, file)) = image(false) else { return };
    let (major, minor) = device.dev();
    let write_cache = format!("/sys/dev/block/{major}:{minor}/queue/write_cache");
    assert_ne!(probe(device.path()).unwrap().layers[1].verdict(), Verdict::Unsafe);
    if let Err(error) = std::fs::write(&write_cache, "write through") {
        eprintln!("skipped: {write_cache}: {error}");
        return;
    }
    let counts = traced(&device, || file.sync_data().unwrap());
    let report = probe(device.path()).unwrap();
    std::fs::write(&write_cache, "write back").unwrap();
    assert_eq!(report.layers[1].verdict(), Verdict::Unsafe, "{report}");
    if let Some(counts) = counts {
        assert_eq!(counts.flushes, 0, "{counts:?}");
    }
}

#[test]
fn a_loop_device_is_probed_through_to_its_backing_file_and_is_gone_after_drop() {
    let Some((backing, device, file)) = image(false) else { return };
    let report = probe(device.path()).unwrap();
    let canonical = backing.path().canonicalize().unwrap();
    assert_eq!(report.layers[2].name, canonical.display().to_string(), "{report}");
    file.write_all_at(&Page([9; 4096]).0, 4096).unwrap();
    file.sync_data().unwrap();
    drop(file);
    let (major, minor) = device.dev();
    let path = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    drop(device);
    let gone = std::fs::read_to_string(path);
    assert!(!gone.is_ok_and(|text| Path::new(text.trim()) == canonical));
    let mut bytes = [0; 4096];
    backing.as_file().read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, [9; 4096]);
}

#[test]
fn two_traces_do_not_disturb_each_other_and_leave_nothing_behind() {
    let Some((_backing, device, file)) = image(false) else { return };
    let Some(counts) = traced(&device, || {
        let inner = traced(&device, || file.sync_data().unwrap()).unwrap();
        assert_eq!(inner.flushes, 1);
        file.sync_data().unwrap();
    }) else {
        return;
    };
    assert_eq!(counts.flushes, 2);
}
