//! Memory: shared, kept by the client, taken away.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use blk_core::bus::Width;
use host_std::server::vfio_user::protocol::{DmaMap, DmaUnmap, MAPPINGS_MAX, UNMAP_ALL, command};
use host_std::testing::client::ClientError;
use host_std::testing::client::vfio_user::{map, unmap};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use zerocopy::IntoBytes as _;

use super::ahci::{ABAR, Ahci, CI, DATA, INTX, MSI, refused};
use super::{Disk, MEMORY_BYTES, SHORT, pattern, until};

const INVAL: u32 = 22;
const EXIST: u32 = 17;
const NOENT: u32 = 2;
const NOSPC: u32 = 28;
const OPNOTSUPP: u32 = 95;

#[test]
fn what_is_written_through_shared_memory_is_on_the_image_and_comes_back() {
    let disk = Disk::new();
    let served = disk.serve("");
    let mut ahci = Ahci::new(disk.connect(), MSI);
    let data = pattern(1 << 20, 3);
    ahci.write(8, &data).unwrap();
    assert_eq!(ahci.read(8, data.len()).unwrap(), data);
    assert_eq!(disk.image()[4096..][..data.len()], data);
    assert_eq!(ahci.client.dma_messages, 0);
    let queue = served.controller.stats().queues[0];
    assert_eq!((queue.writes, queue.written_bytes, queue.read_bytes), (1, 1 << 20, 1 << 20));
}

#[test]
pub(crate) fn memory_that_the_client_keeps_is_read_and_written_by_messages() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.connect();
    client.keep(0, MEMORY_BYTES).unwrap();
    let mut ahci = Ahci::over(client, MSI);
    for (seed, bytes) in [(1, 512), (2, 4096 + 512), (3, 1 << 20)] {
        let data = pattern(bytes, seed);
        ahci.write(u64::from(seed) * 2048, &data).unwrap();
        assert_eq!(ahci.read(u64::from(seed) * 2048, bytes).unwrap(), data, "{bytes}");
        assert_eq!(disk.image()[usize::from(seed) << 20..][..bytes], data);
    }
    assert!(ahci.client.dma_messages > 6);
}

/// A driver whose client shares memory, and keeps 1 MiB to itself from the address on that comes with it.
fn with_memory_of_both_kinds(disk: &Disk) -> (Ahci, u64) {
    let mut client = disk.connect();
    client.share(&super::shared()).unwrap();
    let kept = MEMORY_BYTES as u64;
    client.keep(kept, 1 << 20).unwrap();
    (Ahci::over(client, MSI), kept)
}

#[test]
fn a_transfer_may_cross_from_one_kind_of_memory_into_the_other() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let (mut ahci, edge) = with_memory_of_both_kinds(&disk);
    let data = pattern(8192, 9);
    let (below, above) = data.split_at(4608);
    ahci.client.put(edge - 4608, below);
    ahci.client.put(edge, above);
    ahci.issue(0, 0, true, edge - 4608, data.len());
    ahci.finish(1).unwrap();
    assert_eq!(disk.image()[..8192], data);
    ahci.client.put(edge - 4608, &[0; 4608]);
    ahci.client.put(edge, &[0; 3584]);
    ahci.issue(0, 0, false, edge - 4608, data.len());
    ahci.finish(1).unwrap();
    let back = [ahci.client.take(edge - 4608, 4608), ahci.client.take(edge, 3584)].concat();
    assert_eq!(back, data);
}

/// The device must not touch memory any more once the client has been told that it is unmapped.
#[test]
pub(crate) fn an_unmap_in_mid_dma_is_answered_when_nothing_lands_any_more() {
    let disk = Disk::new();
    let served = disk.serve("read:300ms");
    let (mut ahci, kept) = with_memory_of_both_kinds(&disk);
    ahci.issue(0, 0, false, kept, 4096);
    until("the read is taken", || served.in_flight() == 1);
    let before = ahci.client.dma_messages;
    ahci.client.unmap(kept, 1 << 20).unwrap();
    assert_eq!(served.in_flight(), 0, "answered with a read in flight");
    assert!(ahci.client.dma_messages > before, "the data came before the answer");
    // What comes after has no memory there.
    ahci.finish(1).unwrap();
    ahci.issue(0, 0, false, kept, 4096);
    assert!(ahci.finish(1).is_err());
}

/// A client may take memory away and then say nothing for long, as when its guest is idle.
#[test]
fn what_is_to_be_done_is_done_though_the_client_says_nothing_after_an_unmap() {
    let disk = Disk::new();
    let served = disk.serve("");
    let (mut ahci, kept) = with_memory_of_both_kinds(&disk);
    served.controller.pause();
    let data = pattern(4096, 6);
    ahci.client.put(DATA, &data);
    ahci.issue(0, 0, true, DATA, 4096);
    ahci.client.unmap(kept, 1 << 20).unwrap();
    served.controller.resume();
    until("the write is done", || disk.image()[..4096] == data);
    ahci.finish(1).unwrap();
}

#[test]
fn mappings_that_make_no_sense_are_refused_and_the_client_goes_on() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.connect();
    let file = memfd_create("memory", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 0x4000).unwrap();
    let fds = [file.as_fd(), file.as_fd()];
    let mut send = |map: DmaMap, fds: &[_]| client.call(command::DMA_MAP, map.as_bytes(), fds).map(drop);
    send(map(0x1000, 0x4000, 0), &fds[..1]).unwrap();
    for (refusal, alleged, count) in [
        (EXIST, map(0x1000, 0x4000, 0), 1),
        (EXIST, map(0x4000, 0x1000, 0), 0),
        (EXIST, map(0, 0x2000, 0), 0),
        (EXIST, map(0, 0x1_0000, 0), 0),
        (INVAL, map(0x10_0000, 0, 0), 0),
        (INVAL, map(u64::MAX - 0xfff, 0x2000, 0), 0),
        (INVAL, map(0x10_0001, 0x1000, 0), 0),
        (INVAL, map(0x10_0000, 0x1001, 0), 0),
        (INVAL, map(0x10_0000, 0x5000, 0), 1),
        (INVAL, map(0x10_0000, 0x1000, 0x4000), 1),
        (INVAL, map(0x10_0000, 0x1000, u64::MAX), 1),
        (INVAL, map(0x10_0000, 0x1000, 0x1000), 0),
        (INVAL, map(0x10_0000, 0x1000, 0), 2),
        (INVAL, DmaMap { flags: 0x13, ..map(0x10_0000, 0x1000, 0) }, 0),
        (INVAL, DmaMap { argsz: 31, ..map(0x10_0000, 0x1000, 0) }, 0),
    ] {
        assert_eq!(refused(send(alleged, &fds[..count])), refusal, "{alleged:x?} {count}");
    }
    // A descriptor of what is no memory.
    let (other, _) = std::os::unix::net::UnixStream::pair().unwrap();
    assert_eq!(refused(send(map(0x10_0000, 0x1000, 0), &[other.as_fd()])), INVAL);
    let mut send = |unmap: DmaUnmap| client.call(command::DMA_UNMAP, unmap.as_bytes(), &[]).map(drop);
    for (refusal, alleged) in [
        (NOENT, unmap(0x1000, 0x3000)),
        (NOENT, unmap(0x2000, 0x3000)),
        (NOENT, unmap(0, 0x5000)),
        (OPNOTSUPP, DmaUnmap { flags: 1, ..unmap(0x1000, 0x4000) }),
        (INVAL, DmaUnmap { flags: UNMAP_ALL, ..unmap(0x1000, 0x4000) }),
    ] {
        assert_eq!(refused(send(alleged)), refusal, "{alleged:x?}");
    }
    send(unmap(0x1000, 0x4000)).unwrap();
    assert_eq!(refused(send(unmap(0x1000, 0x4000))), NOENT);
    client.keep(0x1000, 0x4000).unwrap();
    client.keep(0x8000, 0x4000).unwrap();
    let all = DmaUnmap { flags: UNMAP_ALL, ..unmap(0, 0) };
    client.call(command::DMA_UNMAP, all.as_bytes(), &[]).unwrap();
    client.keep(0x1000, 0x1_0000).unwrap();
}

#[test]
fn there_is_an_end_to_mappings() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.connect();
    for page in 0..MAPPINGS_MAX as u64 {
        let map = map(page * 0x1000, 0x1000, 0);
        client.call(command::DMA_MAP, map.as_bytes(), &[]).unwrap();
    }
    let one_more = map(MAPPINGS_MAX as u64 * 0x1000, 0x1000, 0);
    assert_eq!(refused(client.call(command::DMA_MAP, one_more.as_bytes(), &[])), NOSPC);
}

/// A refusal of the client's is an error of the bus to the device, and the guest is told.
#[test]
fn memory_that_the_client_refuses_fails_the_request_and_nothing_else() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.connect();
    client.share(&super::shared()).unwrap();
    // Mapped for the device, and not known to this client's own table.
    let lost = MEMORY_BYTES as u64;
    client.call(command::DMA_MAP, map(lost, 0x1000, 0).as_bytes(), &[]).unwrap();
    let mut ahci = Ahci::over(client, INTX);
    ahci.issue(0, 0, true, lost, 4096);
    assert!(ahci.finish(1).is_err());
    ahci.client.reset().unwrap();
    ahci.start();
    let data = pattern(4096, 1);
    ahci.write(0, &data).unwrap();
    assert_eq!(ahci.read(0, 4096).unwrap(), data);
}

/// Commands go on coming while the device waits for an answer of the client's.
#[test]
fn commands_that_arrive_while_the_device_waits_for_memory_are_answered_after_it_in_order() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.connect();
    client.keep(0, MEMORY_BYTES).unwrap();
    let mut ahci = Ahci::over(client, MSI);
    let data = pattern(4096, 5);
    ahci.client.put(DATA, &data);
    ahci.client.hold_dma = true;
    ahci.issue(0, 0, true, DATA, 4096);
    // The device fetches the command now, and waits; five reads of registers are on their way before it gets it.
    let access = host_std::server::vfio_user::protocol::RegionAccess { offset: CI, region: ABAR, count: 4 };
    let reads: Vec<_> =
        (0..5).map(|_| ahci.client.send(command::REGION_READ, access.as_bytes(), &[]).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(50));
    ahci.client.release_dma().unwrap();
    for id in reads {
        assert_eq!(ahci.client.answer(id).unwrap().len(), 20);
    }
    ahci.finish(1).unwrap();
    assert_eq!(disk.image()[..4096], data);
}

#[test]
fn a_client_that_does_not_answer_for_its_memory_is_let_go_and_another_may_come() {
    let disk = Disk { patience: SHORT, ..Disk::new() };
    let _served = disk.serve("");
    let mut client = disk.connect();
    client.keep(0, MEMORY_BYTES).unwrap();
    let mut ahci = Ahci::over(client, MSI);
    ahci.client.hold_dma = true;
    let begun = Instant::now();
    ahci.issue(0, 0, true, DATA, 4096);
    let gone = loop {
        match ahci.client.read(ABAR, 0, Width::Dword) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(gone, ClientError::Gone), "{gone}");
    assert!(begun.elapsed() >= SHORT);
    let mut next = Ahci::new(disk.connect(), MSI);
    assert_eq!(next.read(0, 512).unwrap(), [0; 512]);
}

/// A client that takes its memory away from under the device: it is let go, and the next one is served.
#[test]
fn memory_that_is_cut_short_ends_its_client() {
    let disk = Disk::new();
    let served = disk.serve("");
    let memory = super::shared();
    let mut client = disk.connect();
    client.share(&memory).unwrap();
    let mut ahci = Ahci::over(client, MSI);
    ahci.write(0, &pattern(512, 1)).unwrap();
    use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};
    for region in memory.mapping().iter() {
        rustix::fs::ftruncate(&**region.file_offset().unwrap().arc(), 0).unwrap();
    }
    // The command list is not there any more. It may be let go before it has the answer.
    let _ = ahci.client.write(super::ahci::ABAR, super::ahci::CI, Width::Dword, 1);
    until("the client is let go", || !served.controller.stats().connected);
    let mut next = Ahci::new(disk.connect(), MSI);
    assert_eq!(next.read(0, 512).unwrap(), pattern(512, 1));
}
