//! Limits of rate under a PCI device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use host_std::throttle::{Limits, Rate, Throttled};

use super::ahci::{Ahci, DATA, MSI};
use super::{Disk, Served, until};

/// What must not wait for a limit takes less, also on a machine that is busy; what waits takes longer.
const AT_ONCE: Duration = Duration::from_secs(3);
/// So many writes are issued, one of which a bucket has a token for.
const WRITES: u8 = 16;

fn serve(disk: &Disk, iops: u64) -> Served {
    let limits = Limits { iops: Rate::new(iops, Some(1)), bps: None };
    disk.serve_under(|backend| Arc::new(Throttled::new(backend, limits)))
}

fn hold_writes(served: &Served, ahci: &mut Ahci) {
    for slot in 0..WRITES {
        ahci.issue(slot, u64::from(slot) * 8, true, DATA, 4096);
    }
    until("the writes are taken", || served.in_flight() >= u32::from(WRITES) - 1);
}

#[test]
fn commands_come_no_faster_than_the_limit() {
    let disk = Disk::new();
    let served = serve(&disk, 50);
    let mut ahci = Ahci::new(disk.connect(), MSI);
    let start = Instant::now();
    hold_writes(&served, &mut ahci);
    ahci.finish((1_u32 << WRITES) - 1).unwrap();
    let time = start.elapsed();
    assert!(time >= Duration::from_millis(299), "one at once, 15 at 20 ms each: {time:?}");
    assert!(time < Duration::from_secs(3), "{time:?}");
}

#[test]
fn a_reset_a_client_that_goes_and_a_stop_wait_for_no_limit() {
    let disk = Disk::new();
    let served = serve(&disk, 1);
    let mut ahci = Ahci::new(disk.connect(), MSI);
    hold_writes(&served, &mut ahci);
    let start = Instant::now();
    ahci.client.reset().unwrap();
    assert!(start.elapsed() < AT_ONCE, "reset: {:?}", start.elapsed());
    assert_eq!(served.in_flight(), 0);
    ahci.start();
    hold_writes(&served, &mut ahci);
    let start = Instant::now();
    drop(ahci);
    until("the client is gone", || !served.controller.stats().connected);
    assert!(start.elapsed() < AT_ONCE, "leave: {:?}", start.elapsed());
    let mut ahci = Ahci::new(disk.connect(), MSI);
    hold_writes(&served, &mut ahci);
    let start = Instant::now();
    served.stop().unwrap();
    assert!(start.elapsed() < AT_ONCE, "stop: {:?}", start.elapsed());
}
