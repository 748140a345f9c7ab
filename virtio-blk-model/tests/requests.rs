//! Requests: what is done, what is refused, and what the driver sees of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::arithmetic_side_effects, reason = "tests")]

mod common;

use blk_core::bus::WriteStatus;
use blk_core::op::Op;
use blk_core::snapshot::{Snapshot, SnapshotError, load, save};
use blk_core::storage::{Cache, IoErrorKind};
use blk_core::units::Extent;
use common::*;
use virtio_blk_model::device::Config;
use virtio_blk_model::front::mmio::Mmio;
use virtio_blk_model::wire::Features;

const fn write(start: u64, sectors: u64) -> Op {
    Op::Write { extent: Extent::new(start, sectors), fua: false }
}

const fn read(start: u64, sectors: u64) -> Op {
    Op::Read { extent: Extent::new(start, sectors) }
}

const fn zeroes(start: u64, sectors: u64, may_unmap: bool) -> Op {
    Op::WriteZeroes { extent: Extent::new(start, sectors), may_unmap }
}

const fn discard(start: u64, sectors: u64) -> Op {
    Op::Discard { extent: Extent::new(start, sectors) }
}

#[test]
fn data_goes_both_ways_and_the_used_length_is_what_was_written() {
    let mut machine = machine();
    machine.put(DATA, &[0xa5; 1024]);
    assert_eq!(machine.request(OUT, 3, &[(DATA, 1024, 0)]), (OK, 1));
    assert_eq!(machine.request(IN, 2, &[(DATA + 0x1000, 1536, WRITE)]), (OK, 1537));
    let read_back = machine.fetch(DATA + 0x1000, 1536);
    assert!(read_back[..512].iter().all(|byte| *byte == 2));
    assert!(read_back[512..].iter().all(|byte| *byte == 0xa5));
    assert_eq!(machine.log(), [write(3, 2), read(2, 3)]);
}

/// 2.7.4.1: the device makes no assumption about where descriptors begin and end.
#[test]
fn a_request_may_be_cut_anywhere() {
    let mut machine = machine();
    machine.put(DATA, &[7; 512]);
    machine.header(HEADER, OUT, 9);
    let pieces =
        [(HEADER, 3, 0), (HEADER + 3, 0, 0), (HEADER + 3, 13, 0), (DATA, 500, 0), (DATA + 500, 12, 0)];
    let head = machine.offer(0, &[&pieces[..], &[(STATUS, 1, WRITE)]].concat());
    machine.poll();
    assert_eq!((machine.reap(0), machine.fetch(STATUS, 1)), (Some((head, 1)), vec![OK]));
    assert_eq!(machine.disks[0].data[9 * 512..10 * 512], [7; 512]);

    // Header and data in one descriptor; data and status in another.
    machine.put(0xa000, &[machine.fetch(HEADER, 16), vec![8; 512]].concat());
    let head = machine.offer(0, &[(0xa000, 528, 0), (STATUS, 1, WRITE)]);
    machine.poll();
    assert_eq!((machine.reap(0), machine.fetch(STATUS, 1)), (Some((head, 1)), vec![OK]));
    machine.header(HEADER, IN, 9);
    let head = machine.offer(0, &[(HEADER, 16, 0), (0xb000, 513, WRITE)]);
    machine.poll();
    assert_eq!(machine.reap(0), Some((head, 513)));
    assert_eq!(machine.fetch(0xb000, 513), [vec![8; 512], vec![OK]].concat());
}

#[test]
fn a_request_may_be_in_an_indirect_table() {
    let mut machine = machine();
    machine.header(HEADER, IN, 5);
    machine.descriptor(TABLE, 0, (HEADER, 16, NEXT), 1);
    machine.descriptor(TABLE, 1, (DATA, 512, NEXT | WRITE), 2);
    machine.descriptor(TABLE, 2, (STATUS, 1, WRITE), 0);
    let head = machine.offer(0, &[(TABLE, 48, INDIRECT)]);
    machine.poll();
    assert_eq!(machine.reap(0), Some((head, 513)));
    assert_eq!(machine.fetch(DATA, 512), [5; 512]);
}

// host-std/tests/defects.md, 20: a chain longer than the device has room for.
#[test]
fn a_chain_of_more_buffers_than_there_is_room_for_is_an_io_error() {
    const LONG_TABLE: u64 = 0x1_0000;
    for (pieces, status) in [(128, OK), (129, IOERR)] {
        let mut machine = machine();
        machine.disks[0].info.segments_max = u16::MAX;
        machine.header(HEADER, IN, 5);
        machine.descriptor(LONG_TABLE, 0, (HEADER, 16, NEXT), 1);
        let mut left: u32 = 512;
        for piece in 1..=pieces {
            // 512 bytes in all: the last two of 129 are halves of one.
            let len = if pieces == 129 && piece > 127 { 2 } else { 4 };
            left -= len;
            machine.descriptor(LONG_TABLE, piece, (DATA + u64::from(left), len, NEXT | WRITE), piece + 1);
        }
        machine.descriptor(LONG_TABLE, pieces + 1, (STATUS, 1, WRITE), 0);
        machine.offer(0, &[(LONG_TABLE, 16 * (u32::from(pieces) + 2), INDIRECT)]);
        machine.poll();
        assert_eq!((left, machine.fetch(STATUS, 1)), (0, vec![status]), "{pieces} buffers");
        assert_eq!(machine.log().is_empty(), status != OK);
    }
}

// host-std/tests/defects.md, 20: a list that is changed between its check and its use.
#[test]
fn a_list_of_ranges_that_changes_after_its_check_is_not_read_again() {
    let mut machine = machine();
    machine.disks[0].eager = false;
    let range = |sector: u64| [sector.to_le_bytes(), 1_u64.to_le_bytes()].concat();
    machine.put(DATA, &[range(1), range(4)].concat());
    let head = machine.send(WRITE_ZEROES, 0, &[(DATA, 32, 0)]);
    machine.poll();
    machine.put(DATA, &[0xff; 32]);
    let memory = machine.memory;
    for _ in 0..2 {
        machine.disks[0].complete(&memory);
        machine.poll();
    }
    assert_eq!(machine.log(), [zeroes(1, 1, false), zeroes(4, 1, false)]);
    assert_eq!((machine.reap(0), machine.fetch(STATUS, 1)), (Some((head, 1)), vec![OK]));
}

// host-std/tests/defects.md, 5.
#[test]
fn a_request_header_that_is_too_short_is_an_io_error() {
    let mut machine = machine();
    // What is missing is not taken for zeroes, nor for what was there before: either would be a flush or a read.
    for (kind, len) in [FLUSH, IN].into_iter().flat_map(|kind| (0..16).map(move |len| (kind, len))) {
        machine.header(HEADER, kind, 0);
        let pieces = [(HEADER, len, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)];
        let head = machine.offer(0, if len == 0 { &pieces[1..] } else { &pieces });
        machine.poll();
        assert_eq!((machine.reap(0), machine.fetch(STATUS, 1)), (Some((head, 1)), vec![IOERR]), "{len}");
    }
    assert_eq!(machine.log(), []);
}

// host-std/tests/defects.md, 5.
#[test]
fn a_write_without_data_is_an_io_error() {
    let mut machine = machine();
    assert_eq!(machine.request(OUT, 0, &[]), (IOERR, 1));
    assert_eq!(machine.request(IN, 0, &[]), (IOERR, 1));
    assert_eq!(machine.log(), []);
}

// host-std/tests/defects.md, 6, and rust-hypervisor-firmware, which flushes without having negotiated it.
#[test]
fn a_flush_with_data_or_without_reaches_the_host() {
    for features in [modern(), modern().difference(Features::FLUSH)] {
        let mut machine = Machine::<1>::new(Config::default(), vec![Disk::new(Cache::WriteBack)], features);
        for kind in [FLUSH, FLUSH_OUT] {
            assert_eq!(machine.request(kind, 0, &[]), (OK, 1));
            assert_eq!(machine.request(kind, 7, &[(DATA, 512, 0)]), (OK, 1));
            assert_eq!(machine.request(kind, 0, &[(DATA, 512, WRITE)]), (OK, 1));
            assert_eq!(machine.log(), [Op::Flush; 3]);
        }
    }
}

// host-std/tests/defects.md, 7.
#[test]
fn a_failed_sync_of_a_write_through_write_is_reported_and_completes() {
    let features = modern().difference(Features::FLUSH | Features::CONFIG_WCE);
    let mut disk = Disk::new(Cache::WriteBack);
    disk.fail = Some((1, IoErrorKind::Medium));
    let mut machine = Machine::<1>::new(Config::default(), vec![disk], features);
    assert_eq!(machine.request(OUT, 0, &[(DATA, 512, 0)]), (IOERR, 1));
    assert_eq!(machine.log(), [write(0, 1), Op::Flush]);
}

// host-std/tests/defects.md, 12 (cloud-hypervisor 7698), and cloud-hypervisor 7697: also where the driver did not accept RO.
#[test]
fn a_read_only_disk_takes_flushes_and_refuses_changes() {
    for (features, by_storage) in [(modern(), true), (modern().difference(Features::RO), false)] {
        let mut disk = Disk::new(Cache::WriteBack);
        disk.info.read_only = by_storage;
        let config = Config { read_only: !by_storage, ..Config::default() };
        let mut machine = Machine::<1>::new(config, vec![disk], features);
        assert!(machine.offered().contains(Features::RO));
        assert!(!machine.offered().intersects(Features::DISCARD | Features::WRITE_ZEROES));
        assert_eq!(machine.request(FLUSH, 0, &[]), (OK, 1));
        assert_eq!(machine.request(IN, 0, &[(DATA, 512, WRITE)]), (OK, 513));
        assert_eq!(machine.log(), [Op::Flush, read(0, 1)]);
        assert_eq!(machine.request(OUT, 0, &[(DATA, 512, 0)]), (IOERR, 1));
        assert_eq!(machine.ranges(WRITE_ZEROES, &[(0, 1, 0)]), (IOERR, 1));
        assert_eq!(machine.ranges(DISCARD, &[(0, 1, 0)]), (IOERR, 1));
        assert_eq!(machine.log(), []);
    }
}

// CVE-2011-1750.
#[test]
fn a_size_that_is_no_multiple_of_512_is_an_io_error() {
    let mut machine = machine();
    for len in [1, 511, 513, 1023] {
        assert_eq!(machine.request(OUT, 0, &[(DATA, len, 0)]), (IOERR, 1), "{len}");
        assert_eq!(machine.request(IN, 0, &[(DATA, len, WRITE)]), (IOERR, 1), "{len}");
    }
    assert_eq!(machine.request(IN, 0, &[(DATA, 100, WRITE), (DATA + 100, 412, WRITE)]), (OK, 513));
}

// host-std/tests/defects.md, 3, and cloud-hypervisor 8388 (sector x 512 wraps), OpenVMM 4046 (sector + count wraps).
#[test]
fn a_sector_whose_offset_or_end_wraps_is_an_io_error() {
    let mut machine = machine();
    for sector in [SECTORS, SECTORS - 1, 1 << 55, (1 << 55) - 1, u64::MAX, u64::MAX - 1] {
        assert_eq!(machine.request(IN, sector, &[(DATA, 1024, WRITE)]), (IOERR, 1), "{sector:#x}");
        assert_eq!(machine.request(OUT, sector, &[(DATA, 1024, 0)]), (IOERR, 1), "{sector:#x}");
    }
    assert_eq!(machine.log(), [], "nothing moves");
    assert_eq!(machine.request(IN, SECTORS - 2, &[(DATA, 1024, WRITE)]), (OK, 1025));
}

// cloud-hypervisor 7873.
#[test]
fn zeroes_and_discards_past_the_end_are_io_errors() {
    let mut machine = machine();
    for kind in [WRITE_ZEROES, DISCARD] {
        for (sector, sectors) in [(SECTORS, 1), (SECTORS - 1, 2), (u64::MAX, 2), (1 << 55, 1), (0, u32::MAX)]
        {
            assert_eq!(machine.ranges(kind, &[(sector, sectors, 0)]), (IOERR, 1), "{sector:#x}");
        }
    }
    assert_eq!(machine.log(), []);
}

#[test]
fn requests_keep_to_logical_blocks() {
    let mut disk = Disk::new(Cache::WriteBack);
    (disk.info.logical_block_bytes, disk.info.physical_block_bytes) = (4096, 4096);
    let mut machine = Machine::<1>::new(Config::default(), vec![disk], modern());
    assert_eq!(machine.request(IN, 0, &[(DATA, 512, WRITE)]), (IOERR, 1));
    assert_eq!(machine.request(IN, 1, &[(DATA, 4096, WRITE)]), (IOERR, 1));
    assert_eq!(machine.ranges(DISCARD, &[(4, 8, 0)]), (IOERR, 1));
    assert_eq!(machine.request(IN, 8, &[(DATA, 4096, WRITE)]), (OK, 4097));
}

#[test]
fn several_segments_are_checked_before_any_is_done_and_then_done_in_order() {
    let mut machine = machine();
    assert_eq!(machine.ranges(WRITE_ZEROES, &[(1, 2, 1), (8, 1, 0), (4, 4, 0)]), (OK, 1));
    assert_eq!(machine.log(), [zeroes(1, 2, true), zeroes(8, 1, false), zeroes(4, 4, false)]);
    assert_eq!(machine.ranges(DISCARD, &[(1, 1, 0), (3, 1, 0)]), (OK, 1));
    assert_eq!(machine.log(), [discard(1, 1), discard(3, 1)]);
    assert_eq!(machine.ranges(WRITE_ZEROES, &[(1, 1, 0), (SECTORS, 1, 0)]), (IOERR, 1));
    assert_eq!(machine.ranges(WRITE_ZEROES, &[(1, 1, 0), (2, 1, 2)]), (UNSUPP, 1));
    assert_eq!(machine.ranges(WRITE_ZEROES, &[]), (IOERR, 1));
    assert_eq!(machine.ranges(WRITE_ZEROES, &[(0, 1, 0); 17]), (IOERR, 1));
    assert_eq!(machine.request(DISCARD, 0, &[(DATA, 15, 0)]), (IOERR, 1));
    assert_eq!(machine.request(DISCARD, 0, &[(DATA, 17, 0)]), (IOERR, 1));
    assert_eq!(machine.log(), []);
    assert_eq!(machine.ranges(WRITE_ZEROES, &[(0, 1, 0); 16]), (OK, 1));
}

#[test]
fn a_segment_that_fails_ends_the_request() {
    let mut machine = machine();
    machine.disks[0].fail = Some((1, IoErrorKind::NoSpace));
    assert_eq!(machine.ranges(WRITE_ZEROES, &[(0, 1, 0), (1, 1, 0), (2, 1, 0)]), (IOERR, 1));
    assert_eq!(machine.log(), [zeroes(0, 1, false), zeroes(1, 1, false)]);
    machine.disks[0].fail = None;
    assert_eq!(machine.ranges(WRITE_ZEROES, &[(0, 1, 0), (1, 1, 0)]), (OK, 1));
}

/// Two requests of several segments at once: the second waits in the ring, and both complete.
#[test]
fn requests_of_several_segments_take_turns() {
    let mut machine = machine();
    machine.disks[0].eager = false;
    let range = |sector: u64| [sector.to_le_bytes(), 1_u64.to_le_bytes()].concat();
    machine.header(HEADER, WRITE_ZEROES, 0);
    machine.put(DATA, &[range(0), range(1), range(2), range(3)].concat());
    for half in 0..2 {
        let pieces = [(HEADER, 16, 0), (DATA + 32 * half, 32, 0), (STATUS + half, 1, WRITE)];
        machine.offer(0, &pieces);
    }
    let memory = machine.memory;
    for sector in 0..4 {
        machine.poll();
        assert_eq!(machine.log(), [zeroes(sector, 1, false)]);
        machine.disks[0].complete(&memory);
    }
    machine.poll();
    assert!(machine.reap(0).is_some() && machine.reap(0).is_some());
    assert_eq!(machine.fetch(STATUS, 2), [OK, OK]);
}

/// 5.2.6.2: unmap in a discard, and any unknown flag.
#[test]
fn flags_that_mean_nothing_are_unsupported() {
    let mut machine = machine();
    assert_eq!(machine.ranges(DISCARD, &[(0, 1, 1)]), (UNSUPP, 1));
    for flags in [2, 3, 1 << 31] {
        assert_eq!(machine.ranges(DISCARD, &[(0, 1, flags)]), (UNSUPP, 1));
        assert_eq!(machine.ranges(WRITE_ZEROES, &[(0, 1, flags)]), (UNSUPP, 1));
        assert_eq!(machine.ranges(SECURE_ERASE, &[(0, 1, flags)]), (UNSUPP, 1));
    }
    assert_eq!(machine.log(), []);
}

#[test]
fn a_type_that_is_not_done_is_unsupported() {
    let mut machine = machine();
    for kind in [2, 3, 6, 7, 9, 10, SECURE_ERASE, 15, 26, BARRIER | OUT, u32::MAX] {
        assert_eq!(machine.request(kind, 0, &[(DATA, 512, 0)]), (UNSUPP, 1), "{kind}");
    }
    machine.disks[0].info.discard = false;
    assert!(!machine.offered().contains(Features::DISCARD));
    assert_eq!(machine.ranges(DISCARD, &[(0, 1, 0)]), (UNSUPP, 1));
    assert_eq!(machine.log(), []);
}

#[test]
fn get_id_returns_twenty_bytes() {
    let config = Config { serial: *b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", ..Config::default() };
    let mut machine = Machine::<1>::new(config, vec![Disk::new(Cache::WriteBack)], modern());
    machine.put(DATA, &[0xff; 32]);
    assert_eq!(machine.request(GET_ID, 0, &[(DATA, 20, WRITE)]), (OK, 21));
    assert_eq!(machine.fetch(DATA, 21), [&config.serial[..], &[0xff]].concat());
    // CVE-2024-8612: a larger buffer is not said to be written.
    assert_eq!(machine.request(GET_ID, 0, &[(DATA, 7, WRITE), (DATA + 7, 20, WRITE)]), (OK, 21));
    assert_eq!(machine.request(GET_ID, 0, &[(DATA, 4, WRITE)]), (OK, 5));
    assert_eq!(machine.request(GET_ID, 0, &[]), (OK, 1));
}

// CVE-2024-8612.
#[test]
fn a_read_that_fails_claims_the_status_byte_only() {
    let mut machine = machine();
    machine.disks[0].fail = Some((0, IoErrorKind::Medium));
    assert_eq!(machine.request(IN, 0, &[(DATA, 512, WRITE)]), (IOERR, 1));
    machine.disks[0].fail = Some((0, IoErrorKind::Unsupported));
    assert_eq!(machine.request(IN, 0, &[(DATA, 512, WRITE)]), (UNSUPP, 1));
}

// CVE-2023-0330: addresses of device registers are not memory.
#[test]
fn data_that_is_not_memory_is_an_io_error() {
    let mut machine = machine();
    assert_eq!(machine.request(IN, 0, &[(1 << 40, 512, WRITE)]), (IOERR, 1));
    assert_eq!(machine.request(OUT, 0, &[(1 << 40, 512, 0)]), (IOERR, 1));
    assert_eq!(machine.request(DISCARD, 0, &[(1 << 40, 16, 0)]), (IOERR, 1));
    assert_eq!(machine.request(GET_ID, 0, &[(1 << 40, 20, WRITE)]), (IOERR, 1));
}

#[test]
fn more_segments_than_the_storage_takes_are_an_io_error() {
    let mut disk = Disk::new(Cache::WriteBack);
    disk.info.segments_max = 2;
    let mut machine = Machine::<1>::new(Config::default(), vec![disk], modern());
    assert_eq!(machine.config(12, blk_core::bus::Width::Dword), 2);
    let piece = |index: u64| (DATA + 512 * index, 512, WRITE);
    assert_eq!(machine.request(IN, 0, &[piece(0), piece(1)]), (OK, 1025));
    assert_eq!(machine.request(IN, 0, &[piece(0), piece(1), piece(2)]), (IOERR, 1));
}

/// host-std/tests/defects.md, 1: what is offered is done. Without REQ_FLAGS the word is ignored: legacy drivers put a priority there.
#[test]
fn the_experimental_fua_flag_counts_only_where_it_was_negotiated() {
    let fua = Features::REQ_FLAGS | Features::REQ_FLAGS_OUT_FUA;
    for (experimental_fua, features) in
        [(false, modern()), (true, modern().difference(fua)), (true, modern())]
    {
        let config = Config { experimental_fua, ..Config::default() };
        let mut machine = Machine::<1>::new(config, vec![Disk::new(Cache::WriteBack)], features);
        assert_eq!(machine.offered().contains(fua), experimental_fua);
        machine.header(HEADER, OUT, 0);
        machine.put(HEADER + 4, &[1]);
        machine.offer(0, &[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
        machine.poll();
        let negotiated = experimental_fua && features.contains(fua);
        assert_eq!(machine.log().contains(&Op::Flush), negotiated);
    }
}

/// Its guest's data would land in nobody's memory, and its reset would wait for what nobody completes.
#[test]
fn a_device_with_a_request_in_flight_is_not_saved_and_one_without_goes_on_elsewhere() {
    let mut machine = machine();
    machine.disks[0].eager = false;
    machine.send(IN, 2, &[(DATA, 512, WRITE)]);
    machine.poll();
    let mut buffer = [0; Mmio::<1, 8>::BYTES_MAX];
    assert_eq!(save(&machine.device, &mut buffer), Err(SnapshotError::NotQuiet));
    let reset = machine.device.device_mut().reset(&machine.memory, &mut machine.disks);
    assert_eq!(reset, WriteStatus::Pending);
    assert_eq!(save(&machine.device, &mut buffer), Err(SnapshotError::NotQuiet), "a reset waits");

    let mut machine = common::machine();
    assert_eq!(machine.request(IN, 2, &[(DATA, 512, WRITE)]), (OK, 513));
    let saved = save(&machine.device, &mut buffer).unwrap().to_vec();
    machine.device = load(&saved).unwrap();
    assert_eq!(machine.request(IN, 3, &[(DATA, 512, WRITE)]), (OK, 513));
    assert!(load::<Mmio<2, 8>>(&saved).is_err(), "another number of queues");
}
