//! Clients that say nothing, half of something, or too much at once: the next one is served, and an operator is heard.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use blk_core::bus::Width;
use host_std::server::vfio_user::protocol::{RegionAccess, SmallWrite, command};
use host_std::testing::client::vfio_user::CONFIG;
use zerocopy::IntoBytes as _;

use super::stub::Stub;
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

/// Register writes that take seconds, in one message.
#[test]
fn neither_a_pause_nor_a_stop_waits_for_all_that_a_client_has_said() {
    let disk = Disk::new();
    let write_takes = Duration::from_millis(1);
    let (controller, thread) = Stub { write_takes, ..Stub::default() }.serve(&disk);
    let mut client = disk.connect();
    // Memory space.
    client.write(CONFIG, 4, Width::Word, 2).unwrap();
    let access = RegionAccess { offset: 0, region: 0, count: 4 };
    let writes = vec![SmallWrite { access, data: [0; 8] }; 5000];
    let body = [(writes.len() as u64).as_bytes(), writes.as_bytes()].concat();
    client.send(command::REGION_WRITE_MULTI, &body, &[]).unwrap();
    let begun = Instant::now();
    controller.pause();
    assert!(begun.elapsed() < Duration::from_secs(1), "a pause took {:?}", begun.elapsed());
    controller.stop();
    thread.join().unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "a stop took {:?}", begun.elapsed());
}
