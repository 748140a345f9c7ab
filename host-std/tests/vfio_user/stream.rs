//! Random streams of messages: no panic, no hang, and the next client is served.

#[path = "../serving/vfio_garbage.rs"]
mod vfio_garbage;

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::ahci::{Ahci, MSI};
use super::{Disk, SHORT, pattern};

const TIME: Duration = Duration::from_secs(4);

/// One client.
fn scribble(disk: &Disk, rng: &mut Rng) {
    let mut client = if rng.u8(..8) == 0 { disk.stranger() } else { disk.connect() };
    vfio_garbage::send(&mut client, rng);
}

#[test]
fn random_streams_neither_end_nor_stall_the_server() {
    let disk = Disk { patience: SHORT / 10, ..Disk::new() };
    let served = disk.serve("");
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let begun = Instant::now();
    let mut clients = 0;
    while begun.elapsed() < TIME {
        scribble(&disk, &mut rng);
        clients += 1;
    }
    let mut ahci = Ahci::new(disk.connect(), MSI);
    let data = pattern(4096, 1);
    ahci.write(0, &data).unwrap();
    assert_eq!(ahci.read(0, 4096).unwrap(), data);
    drop(ahci);
    println!("{clients} clients");
    assert!(clients > 10);
    served.stop().unwrap();
}
