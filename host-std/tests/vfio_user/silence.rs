//! Clients that say nothing, half of something, or too much at once: the next one is served, and an operator is heard.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use blk_core::bus::Width;
use host_std::server::vfio_user::protocol::{RegionAccess, SmallWrite, command};
use zerocopy::IntoBytes as _;

use super::ahci::{ABAR, Ahci, MSI};
use super::{Disk, SHORT, until};

#[test]
fn a_client_that_says_nothing_or_half_a_message_is_let_go() {
    let disk = Disk { patience: SHORT, ..Disk::new() };
    let served = disk.serve("");
    // VERSION: half of its header; a header whose body does not come.
    let beginnings: [&[u8]; 3] = [&[], &[1, 0, 1, 0], &[1, 0, 1, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]];
    for (clients, beginning) in (1..).zip(beginnings) {
        let mut silent = UnixStream::connect(disk.path("socket")).unwrap();
        silent.write_all(beginning).unwrap();
        until("the client is there", || served.controller.stats().clients == 2 * clients - 1);
        disk.connect().device_info().unwrap();
        assert_eq!(served.controller.stats().clients, 2 * clients);
    }
    let mut quiet = disk.connect();
    std::thread::sleep(SHORT * 3);
    quiet.device_info().unwrap();
}

/// As many registers as a message can name, over and over: each has the device begin something.
#[test]
fn neither_a_stop_nor_a_pause_waits_for_all_that_a_client_has_said() {
    let disk = Disk::new();
    let served = disk.serve("");
    let mut ahci = Ahci::new(disk.connect(), MSI);
    ahci.client.write(ABAR, 0x118, Width::Dword, 0x11).unwrap();
    let mut data = [0; 8];
    data[0] = 1;
    // PxCI, whose command is there and reads.
    let access = RegionAccess { offset: 0x138, region: 5, count: 4 };
    let writes: Vec<_> = (0..40_000).map(|_| SmallWrite { access, data }).collect();
    let body = [(writes.len() as u64).as_bytes(), writes.as_bytes()].concat();
    let mut more = ahci.client.stream().try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let header = host_std::server::vfio_user::protocol::Header::command(
            1,
            command::REGION_WRITE_MULTI,
            body.len(),
        );
        let message = [header.as_bytes(), &body].concat();
        while more.write_all(&message).is_ok() {}
    });
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    served.controller.pause();
    served.controller.resume();
    assert!(begun.elapsed() < Duration::from_secs(1), "a pause took {:?}", begun.elapsed());
    let begun = Instant::now();
    served.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "a stop took {:?}", begun.elapsed());
    flood.join().unwrap();
}
