//! A socket that sends garbage: messages that look valid, from a seed. The server survives, forgets the client that sent
//! them, and keeps no memory for it.

#[path = "vfio_user/ahci.rs"]
#[allow(dead_code, reason = "a part is used")]
mod ahci;
mod serving;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ahci::{Ahci, MSI};
use fastrand::Rng;
use host_std::memory::MappedMemory;
use host_std::testing::client::vfio_user::VfioUser;
use host_std::testing::client::{Blk, Options};
use serving::garbage::Garbage;
use serving::{Disk, Server, vfio_garbage};

/// What the server may take, and keep.
const MEMORY_MAX_KIB: u64 = 128 << 10;
const DESCRIPTORS_MAX: usize = 64;
const PATIENCE: Duration = Duration::from_secs(20);

fn shared() -> MappedMemory {
    MappedMemory::shared(&[(blk_core::units::GuestAddr(0), 4 << 20)]).unwrap()
}

/// How long each protocol is sent garbage: a few seconds, or what GARBAGE_SECONDS says.
fn time() -> Duration {
    let seconds =
        std::env::var("GARBAGE_SECONDS").map(|seconds| seconds.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(3))
}

fn random() -> Rng {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a seed"));
    eprintln!("SEED={seed}");
    Rng::with_seed(seed)
}

/// Clients that send garbage, one after the other, and a guest among them now and then.
fn send_garbage(
    server: &mut Server,
    random: &mut Rng,
    mut garbage: impl FnMut(&Server, &mut Rng),
    mut guest: impl FnMut(&Server, &[u8]) -> Vec<u8>,
) {
    let begun = Instant::now();
    let mut clients = 0_u32;
    while begun.elapsed() < time() {
        garbage(server, random);
        clients += 1;
        if clients.is_multiple_of(20) {
            assert!(server.runs(), "client {clients}: the server ended");
            let data: Vec<u8> = (0..4096).map(|_| random.u8(..)).collect();
            assert_eq!(guest(server, &data), data, "after client {clients}");
        }
    }
    assert!(server.runs(), "the server ended");
    let held = server.holds();
    eprintln!("{clients} clients sent garbage; the server holds {held:?}");
    assert!(clients > 20, "{clients} clients only");
    assert!(held.memory_kib < MEMORY_MAX_KIB, "{held:?}");
    assert!(held.descriptors < DESCRIPTORS_MAX, "{held:?}");
}

#[test]
fn garbage_harms_neither_the_server_nor_the_next_client() {
    let mut random = random();
    let disk = Disk::new(1 << 20);
    let mut server = disk.serve("", &[]);
    let mut garbage = Garbage::new(random.fork());
    send_garbage(
        &mut server,
        &mut random,
        |server, _| garbage.client(server.socket()),
        |server, data| {
            let options = Options { transfer_bytes: 4096, segment_bytes: 4096, ..Options::default() };
            let mut guest = Blk::connect(server.socket(), options).unwrap();
            let mut back = vec![0; data.len()];
            guest.write(8, data).unwrap();
            guest.flush().unwrap();
            guest.read(8, &mut back).unwrap();
            back
        },
    );
}

#[test]
fn garbage_over_vfio_user_harms_neither_the_server_nor_the_next_client() {
    let mut random = random();
    let disk = Disk::new(1 << 20);
    let mut server = disk.serve_as("ahci", "", &[], None);
    drop(server.connect_vfio_user());
    send_garbage(
        &mut server,
        &mut random,
        |server, random| {
            let stranger = || VfioUser::new(UnixStream::connect(server.socket()).unwrap(), PATIENCE).unwrap();
            let mut client = if random.u8(..8) == 0 { stranger() } else { server.connect_vfio_user() };
            vfio_garbage::send(&mut client, random);
        },
        |server, data| {
            let mut guest = Ahci::new(server.connect_vfio_user(), MSI);
            guest.write(8, data).unwrap();
            guest.read(8, data.len()).unwrap()
        },
    );
}
