//! A socket that sends garbage: messages that look valid, from a seed. The server survives, forgets the client that sent
//! them, and keeps no memory for it.

mod serving;

use fastrand::Rng;
use host_std::testing::client::{Blk, Options};
use serving::garbage::Garbage;
use serving::{Disk, Server};

/// What the server may take, and keep.
const MEMORY_MAX_KIB: u64 = 128 << 10;
const DESCRIPTORS_MAX: usize = 64;

/// Memory that the server has now.
fn resident_kib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn garbage_harms_neither_the_server_nor_the_next_client() {
    let rounds =
        std::env::var("GARBAGE_ROUNDS").map_or(400, |rounds| rounds.parse().expect("a number of rounds"));
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a seed"));
    eprintln!("SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let disk = Disk::new(1 << 20);
    let mut server = disk.serve("", &[]);
    let options = Options { transfer_bytes: 4096, segment_bytes: 4096, ..Options::default() };
    drop(Blk::connect(server.socket(), options.clone()).unwrap());
    let mut garbage = Garbage::new(random.fork());
    for round in 0..rounds {
        garbage.client(server.socket());
        if round % 20 == 19 {
            assert!(server.runs(), "round {round}: the server ended");
            let mut guest = Blk::connect(server.socket(), options.clone()).unwrap();
            let data: Vec<u8> = (0..4096).map(|_| random.u8(..)).collect();
            let mut back = vec![0; 4096];
            guest.write(8, &data).unwrap();
            guest.flush().unwrap();
            guest.read(8, &mut back).unwrap();
            assert_eq!(back, data, "round {round}");
        }
    }
    let kept = resident_kib(&server);
    assert!(kept < MEMORY_MAX_KIB, "the server keeps {kept} KiB");
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().count();
    assert!(open < DESCRIPTORS_MAX, "the server keeps {open} descriptors");
}
