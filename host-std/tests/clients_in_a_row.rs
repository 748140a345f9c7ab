//! Clients one after the other, each of which leaves in its own way: every one is served, what an earlier one was told is
//! there, and the server keeps nothing of those that are gone. `CLIENTS=2000` for a long row.

#[path = "vfio_user/ahci.rs"]
#[allow(dead_code, reason = "a part is used")]
mod ahci;
mod serving;

use std::io::Write as _;
use std::time::{Duration, Instant};

use ahci::{Ahci, MSI};
use fastrand::Rng;
use host_std::memory::MappedMemory;
use host_std::testing::client::{Blk, Options, Payload, Request};
use serving::{Disk, Server, Shadow};

const PATIENCE: Duration = Duration::from_secs(20);
const BYTES: usize = 1 << 20;
const BLOCK: usize = 4096;
const SECTORS: u64 = (BLOCK / 512) as u64;
/// Memory that a server may grow by: what an allocator keeps of one client is there for the next.
const GROWTH_MAX_KIB: u64 = 8 << 10;

fn shared() -> MappedMemory {
    MappedMemory::shared(&[(blk_core::units::GuestAddr(0), 4 << 20)]).unwrap()
}

fn clients() -> u32 {
    std::env::var("CLIENTS").map_or(100, |clients| clients.parse().expect("a number of clients"))
}

/// Serves a row of clients. `client` comes, does something to the blocks and leaves.
fn row(mut server: Server, mut client: impl FnMut(&Server, &mut Rng, &mut Shadow)) {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a seed"));
    eprintln!("SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let mut shadow = Shadow::new(BYTES, BLOCK);
    let clients = clients();
    let mut early = None;
    let begun = Instant::now();
    for number in 0..clients {
        client(&server, &mut random, &mut shadow);
        assert!(server.runs(), "client {number}: the server ended");
        if number == clients / 10 {
            early = Some(server.holds());
        }
    }
    let (early, late) = (early.expect("a tenth of them"), server.holds());
    eprintln!("{clients} clients in {:?}; early {early:?}, late {late:?}", begun.elapsed());
    assert_eq!(late.threads, early.threads);
    // What the last client had may be on its way out.
    assert!(late.descriptors <= early.descriptors + 8, "{early:?} {late:?}");
    assert!(late.memory_kib <= early.memory_kib + GROWTH_MAX_KIB, "{early:?} {late:?}");
    server.terminate();
    assert!(server.wait().success());
}

/// A client that says a part of what it has to say.
fn half_a_message(server: &Server, random: &mut Rng) {
    let mut stream = server.connect();
    let bytes: Vec<u8> = (0..random.usize(..15)).map(|_| random.u8(..)).collect();
    stream.write_all(&bytes).unwrap();
}

#[test]
fn vhost_user_clients_are_all_served_and_nothing_of_them_is_kept() {
    let disk = Disk::new(BYTES as u64);
    row(disk.serve("", &[]), |server, random, shadow| {
        if random.u8(..8) == 0 {
            return half_a_message(server, random);
        }
        let options =
            Options { transfer_bytes: BLOCK as u32, segment_bytes: BLOCK as u32, ..Options::default() };
        let mut guest = Blk::connect(server.socket(), options).unwrap();
        shadow.verify(&mut guest);
        let (block, other) = (random.usize(..BYTES / BLOCK), random.usize(..BYTES / BLOCK));
        let data = shadow.next(block);
        guest.write(block as u64 * SECTORS, &data).unwrap();
        guest.flush().unwrap();
        shadow.acknowledge(block);
        if random.bool() {
            // It leaves with a write under way.
            let data = shadow.next(other);
            let write = Request::Write { sector: other as u64 * SECTORS, data: Payload::Bytes(&data) };
            guest.submit(0, write).unwrap();
            guest.session_mut().kick(0).unwrap();
        }
    });
}

#[test]
fn vfio_user_clients_are_all_served_and_nothing_of_them_is_kept() {
    let disk = Disk::new(BYTES as u64);
    let server = disk.serve_as("ahci", "", &[], None);
    drop(server.connect_vfio_user());
    row(server, |server, random, shadow| {
        if random.u8(..8) == 0 {
            return half_a_message(server, random);
        }
        let mut guest = Ahci::new(server.connect_vfio_user(), MSI);
        shadow.verify_by(|sector, back| back.copy_from_slice(&guest.read(sector, back.len()).unwrap()));
        let (block, other) = (random.usize(..BYTES / BLOCK), random.usize(..BYTES / BLOCK));
        guest.write(block as u64 * SECTORS, &shadow.next(block)).unwrap();
        shadow.acknowledge(block);
        if random.bool() {
            let data = shadow.next(other);
            guest.client.put(ahci::DATA, &data);
            guest.issue(1, other as u64 * SECTORS, true, ahci::DATA, BLOCK);
        }
    });
}
