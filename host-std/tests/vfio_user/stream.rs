//! Random streams of messages: no panic, no hang, and the next client is served.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use fastrand::Rng;
use host_std::server::vfio_user::protocol::{Header, RegionAccess, command};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::IntoBytes as _;

use super::ahci::{Ahci, MSI};
use super::{Disk, SHORT, pattern};

const TIME: Duration = Duration::from_secs(4);

/// One client: a stream of messages that are nearly right.
fn scribble(disk: &Disk, rng: &mut Rng) {
    let mut client = if rng.u8(..8) == 0 { disk.stranger() } else { disk.connect() };
    let irq = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 0x10_0000).unwrap();
    if rng.bool() {
        let map = host_std::testing::client::vfio_user::map(0, 0x10_0000, 0);
        let _ = client.send(command::DMA_MAP, map.as_bytes(), &[memory.as_fd()]);
    }
    for _ in 0..rng.usize(1..200) {
        let command = rng.u16(..20);
        let mut body: Vec<u8> = (0..rng.usize(..64)).map(|_| rng.u8(..)).collect();
        match command {
            command::REGION_READ | command::REGION_WRITE => {
                // Registers that there are, mostly.
                let region = [4, 5, 5, 5, 7][rng.usize(..5)];
                let count = [1, 2, 4, 8, rng.u32(..20)][rng.usize(..5)];
                let offset = u64::from(rng.u16(..0x180)) & !u64::from(rng.u8(..8));
                let data: Vec<u8> = (0..count).map(|_| if rng.bool() { rng.u8(..) } else { 0 }).collect();
                body = RegionAccess { offset, region, count }.as_bytes().to_vec();
                if command == command::REGION_WRITE {
                    body.extend(data);
                }
            }
            command::DMA_MAP | command::DMA_UNMAP if rng.bool() => {
                let page = |rng: &mut Rng| u64::from(rng.u8(..16)) << 12;
                let map = host_std::testing::client::vfio_user::map(page(rng), page(rng), 0);
                body = map.as_bytes().to_vec();
            }
            _ => {}
        }
        let fds = [irq.as_fd(), memory.as_fd()];
        let fds = match rng.u8(..16) {
            0 => &fds[..1],
            1 => &fds[1..],
            2 => &fds[..],
            _ => &[],
        };
        let mut header = Header::command(rng.u16(..), command, body.len());
        match rng.u8(..200) {
            0 => header.bytes = rng.u32(..),
            1 => header.flags = rng.u32(..),
            2..80 => header.flags = 0x10,
            _ => {}
        }
        if client.send_message(&header, &body, fds).is_err() {
            return;
        }
        if rng.u8(..4) == 0 {
            // Takes what there is, and answers nothing.
            let mut bytes = [0; 4096];
            let _ = client.stream().set_nonblocking(true);
            let _ = std::io::Read::read(&mut client.stream(), &mut bytes);
            let _ = client.stream().set_nonblocking(false);
        }
    }
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
