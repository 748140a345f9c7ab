//! Budgets, as a guest and an operator meet them: `blk-host serve` in a process of its own.

mod serving;

use std::time::{Duration, Instant};

use blk_core::bus::Width;
use host_std::testing::client::vfio_user::{CONFIG, VfioUser};
use host_std::testing::client::{Blk, Options, Payload, Request};
use serde_json::Value;
use serving::Disk;

const PIECE: u32 = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

fn write(sector: u64) -> Request<'static> {
    Request::Write { sector, data: Payload::Whatever(PIECE) }
}

fn budgets(disk: &Disk) -> Value {
    disk.stats()["images"][0]["budgets"].clone()
}

#[test]
fn a_guest_has_no_more_bytes_in_flight_than_its_budget_on_all_its_queues_and_all_its_requests_end() {
    let disk = Disk::new(64 << 20);
    let server = disk.serve("queues=2,inflight=1M", &[]);
    let options = Options {
        queues: 2,
        transfer_bytes: PIECE,
        segment_bytes: PIECE,
        timeout: PATIENCE,
        ..Options::default()
    };
    let mut guest = Blk::connect(server.socket(), options).unwrap();
    for _ in 0..4 {
        for request in 0..32 {
            guest.submit(0, write(request * 512)).unwrap();
            guest.submit(1, write((32 + request) * 512)).unwrap();
        }
        for queue in [0, 1] {
            for _ in 0..32 {
                assert!(guest.wait(queue).unwrap().is_ok());
            }
        }
    }
    let report = budgets(&disk);
    let in_flight = &report["bytes_in_flight"];
    assert_eq!((in_flight["used"].as_u64(), in_flight["limit"].as_u64()), (Some(0), Some(1 << 20)));
    let peak = in_flight["peak"].as_u64().unwrap();
    assert!((u64::from(PIECE)..=1 << 20).contains(&peak), "{report}");
    assert!(report["delayed"].as_u64().unwrap() > 64, "{report}");
    let table = disk.ctl(&["stats"]);
    assert!(table.contains("bytes in flight") && table.contains("private memory"), "{table}");
    assert!(table.contains("0 requests wait"), "{table}");
}

#[test]
fn a_client_that_shares_no_memory_makes_the_server_use_no_more_than_its_budget() {
    const ABAR: u32 = 5;
    let disk = Disk::new(64 << 20);
    let server = disk.serve_pci("ahci", "private-memory=1M");
    let mut client = VfioUser::connect(server.socket(), PATIENCE).unwrap();
    client.keep(0, 8 << 20).unwrap();
    client.write(CONFIG, 4, Width::Word, 6).unwrap();
    // GHC.AE, PxCLB, PxFB, PxSERR; PxCMD.FRE, then ST (AHCI 1.3.1, 3.1 and 3.3).
    for (register, value) in
        [(0x04, 0x8000_0000), (0x100, 0), (0x108, 0x400), (0x130, 0xffff_ffff), (0x118, 0x10), (0x118, 0x11)]
    {
        client.write(ABAR, register, Width::Dword, value).unwrap();
    }
    // In each of 32 slots a queued write, then a read, of 256 KiB from 1 MiB on.
    for opcode in [0x61, 0x60] {
        for slot in 0..32_u8 {
            let table = 0x1000 + u64::from(slot) * 0x100;
            let lba = u64::from(slot) * 512;
            let [l0, l1, ..] = lba.to_le_bytes();
            let fis = [0x27, 0x80, opcode, 0, l0, l1, 0, 0x40, 0, 0, 0, 2, slot << 3, 0, 0, 0, 0, 0, 0, 0];
            let mut header = [0; 32];
            header[..4].copy_from_slice(&(5_u32 | u32::from(opcode & 1) << 6 | 1 << 16).to_le_bytes());
            header[8..16].copy_from_slice(&table.to_le_bytes());
            let mut region = [0; 16];
            region[..8].copy_from_slice(&0x10_0000_u64.to_le_bytes());
            region[12..].copy_from_slice(&(PIECE - 1).to_le_bytes());
            client.put(u64::from(slot) * 32, &header);
            client.put(table, &fis);
            client.put(table + 0x80, &region);
        }
        client.write(ABAR, 0x134, Width::Dword, 0xffff_ffff).unwrap();
        client.write(ABAR, 0x138, Width::Dword, 0xffff_ffff).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while client.read(ABAR, 0x134, Width::Dword).unwrap() != 0 {
            assert!(Instant::now() < deadline, "{}", budgets(&disk));
        }
        assert_eq!(client.read(ABAR, 0x110, Width::Dword).unwrap() & 0xf << 27, 0, "no command failed");
    }
    let report = budgets(&disk);
    let private = &report["private_memory"];
    assert_eq!((private["used"].as_u64(), private["limit"].as_u64()), (Some(0), Some(1 << 20)));
    let peak = private["peak"].as_u64().unwrap();
    assert!((u64::from(PIECE)..=1 << 20).contains(&peak), "{report}");
    assert!(report["delayed"].as_u64().unwrap() >= 32, "{report}");
}
