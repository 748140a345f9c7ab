//! Garbage for a vfio-user socket: messages that are nearly right, from a seed.

use std::io::Read as _;
use std::os::fd::AsFd as _;

use fastrand::Rng;
use host_std::server::vfio_user::protocol::{Header, RegionAccess, command};
use host_std::testing::client::vfio_user::{VfioUser, map};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::IntoBytes as _;

/// Sends messages until it has had enough, or until the server has closed the connection.
pub(crate) fn send(client: &mut VfioUser, rng: &mut Rng) {
    let irq = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 0x10_0000).unwrap();
    if rng.bool() {
        let map = map(0, 0x10_0000, 0);
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
                let map = map(page(rng), page(rng), 0);
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
            let _ = client.stream().read(&mut bytes);
            let _ = client.stream().set_nonblocking(false);
        }
    }
}
