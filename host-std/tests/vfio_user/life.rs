//! Resets, clients that come and go, and the operator.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use blk_core::bus::Width;
use host_std::testing::client::vfio_user::CONFIG;

use super::ahci::{Ahci, DATA, INTX, MSI};
use super::stub::Stub;
use super::{Disk, pattern, until};

#[test]
fn a_device_shows_its_regions_and_nothing_beyond_them() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.connect();
    let info = client.device_info().unwrap();
    assert_eq!((info.flags, info.regions, info.irqs), (3, 9, 3));
    let sizes: Vec<_> = (0..9).map(|index| client.region_info(index).unwrap().size).collect();
    // BAR 0 has the messages' table, BAR 4 the index and data pair, BAR 5 the registers.
    assert_eq!(sizes, [4096, 0, 0, 0, 32, 4096, 0, 256, 0]);
    assert_eq!(super::ahci::refused(client.region_info(9)), 22);
    // All of it at once, and the same in parts.
    let whole = client.read_bytes(CONFIG, 0, 256).unwrap();
    assert_eq!(whole[..4], [0x86, 0x80, 0x22, 0x29]);
    let parts: Vec<u8> = (0..64).flat_map(|n| client.read_bytes(CONFIG, n * 4, 4).unwrap()).collect();
    assert_eq!(whole, parts);
    for (region, offset, count) in
        [(CONFIG, 255, 2), (5, 4096, 1), (5, u64::MAX, 1), (1, 0, 1), (6, 0, 4), (9, 0, 4)]
    {
        assert_eq!(super::ahci::refused(client.read_bytes(region, offset, count)), 22, "{region} {offset}");
    }
}

/// Nothing of before the reset lands after its answer.
#[test]
pub(crate) fn a_reset_with_writes_in_flight_waits_for_them() {
    let disk = Disk::new();
    let served = disk.serve("write:200ms");
    let mut ahci = Ahci::new(disk.connect(), MSI);
    let data = pattern(4096, 7);
    ahci.client.put(DATA, &data);
    for slot in 0..8 {
        ahci.issue(slot, 8 + u64::from(slot) * 8, true, DATA, 4096);
    }
    until("the writes are taken", || served.in_flight() == 8);
    ahci.client.reset().unwrap();
    assert_eq!(served.in_flight(), 0, "answered with writes in flight");
    let image = disk.image();
    assert_eq!(image[..4096], [0; 4096], "sector 0 is as it was");
    ahci.start();
    assert_eq!(ahci.read(8, 4096).unwrap(), data);
    assert_eq!(disk.image(), image, "nothing landed later");
}

#[test]
pub(crate) fn a_client_that_is_killed_in_mid_dma_leaves_a_disk_at_rest_for_the_next() {
    let disk = Disk::new();
    let served = disk.serve("write:200ms");
    for round in 0..3_u8 {
        let mut ahci = Ahci::new(disk.connect(), if round == 1 { INTX } else { MSI });
        if round > 0 {
            // What the one before had in flight has landed whole.
            assert_eq!(served.in_flight(), 0, "a client is served while the one before has writes in flight");
            assert_eq!(ahci.read(64, 4096).unwrap(), pattern(4096, round - 1));
        }
        let flushes = served.fdatasyncs();
        ahci.client.put(DATA, &pattern(4096, round));
        ahci.issue(0, 64, true, DATA, 4096);
        until("the write is taken", || served.in_flight() == 1);
        drop(ahci);
        until("the client is gone", || !served.controller.stats().connected);
        assert!(served.fdatasyncs() > flushes, "flushed when the client has gone");
    }
    assert_eq!(served.controller.stats().clients, 3);
}

#[test]
fn a_client_that_is_killed_while_the_device_waits_for_its_memory_is_let_go_at_once() {
    let disk = Disk::new();
    let served = disk.serve("");
    let mut client = disk.connect();
    client.keep(0, super::MEMORY_BYTES).unwrap();
    let mut ahci = Ahci::over(client, MSI);
    ahci.client.hold_dma = true;
    ahci.issue(0, 0, true, DATA, 4096);
    std::thread::sleep(Duration::from_millis(20));
    drop(ahci);
    until("the client is gone", || !served.controller.stats().connected);
    let mut next = Ahci::new(disk.connect(), MSI);
    next.write(0, &pattern(512, 2)).unwrap();
}

#[test]
fn a_paused_device_takes_nothing_until_it_is_resumed() {
    let disk = Disk::new();
    let served = disk.serve("");
    let mut ahci = Ahci::new(disk.connect(), MSI);
    served.controller.pause();
    let data = pattern(4096, 4);
    ahci.client.put(DATA, &data);
    ahci.issue(0, 0, true, DATA, 4096);
    // It has been looked at.
    assert_ne!(ahci.get(0x134), 0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((served.in_flight(), disk.image()[0]), (0, 0));
    served.controller.drain();
    assert!(served.controller.stats().paused);
    served.controller.resume();
    ahci.finish(1).unwrap();
    assert_eq!(disk.image()[..4096], data);
}

#[test]
fn a_client_that_goes_while_the_device_is_paused_does_not_hold_up_the_next_nor_the_end() {
    let disk = Disk::new();
    let served = disk.serve("");
    let mut ahci = Ahci::new(disk.connect(), MSI);
    served.controller.pause();
    ahci.client.put(DATA, &[9; 512]);
    ahci.issue(0, 0, true, DATA, 512);
    drop(ahci);
    until("the client is gone", || !served.controller.stats().connected);
    assert_eq!(disk.image()[0], 0, "what was held back is dropped");
    let mut next = disk.connect();
    assert_eq!(next.read(CONFIG, 0, Width::Dword).unwrap(), 0x2922_8086);
    drop(next);
    served.stop().unwrap();
}

#[test]
fn the_end_completes_what_is_in_flight_and_flushes() {
    let disk = Disk::new();
    let served = disk.serve("write:200ms");
    let mut ahci = Ahci::new(disk.connect(), MSI);
    let data = pattern(4096, 6);
    ahci.client.put(DATA, &data);
    ahci.issue(0, 0, true, DATA, 4096);
    until("the write is taken", || served.in_flight() == 1);
    let backend = std::sync::Arc::clone(&served.backend);
    let before = backend.counts().fdatasync_calls;
    served.stop().unwrap();
    assert!(backend.counts().fdatasync_calls > before);
    assert_eq!(disk.image()[..4096], data);
}

#[test]
fn a_flush_that_fails_at_the_end_is_told() {
    let disk = Disk::new();
    let served = disk.serve("flush:eio");
    let mut ahci = Ahci::new(disk.connect(), MSI);
    ahci.write(0, &pattern(512, 1)).unwrap();
    drop(ahci);
    assert!(served.stop().is_err());
}

#[test]
fn a_client_is_heard_by_a_device_that_never_rests() {
    let disk = Disk::new();
    let (controller, thread) = Stub { restless: true, ..Stub::default() }.serve(&disk);
    for _ in 0..2 {
        let mut client = disk.connect();
        assert_eq!(client.read(CONFIG, 0, Width::Word).unwrap(), 0x8086);
        drop(client);
        until("the client is gone", || !controller.stats().connected);
    }
    controller.stop();
    thread.join().unwrap().unwrap();
}

/// What is logged, line by line, by all tests of this program.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_a_driver_breaks_is_logged_once() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt().with_writer(move || writer.clone()).init();
    let disk = Disk::new();
    let fault = Some("its ring is a knot");
    let (controller, thread) = Stub { restless: true, fault, ..Stub::default() }.serve(&disk);
    let mut client = disk.connect();
    for _ in 0..3 {
        client.device_info().unwrap();
    }
    controller.stop();
    thread.join().unwrap().unwrap();
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("its ring is a knot").count(), 1, "{text}");
}
