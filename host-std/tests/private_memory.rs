//! Memory of a guest that its client does not share: an image stands in for it with a bounded amount of its own.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use blk_core::memory::MemoryError;
use blk_core::op::Op;
use blk_core::storage::{CacheMode, Storage as _};
use blk_core::units::{Extent, GuestAddr};
use common::*;
use host_std::memory::{MappedMemory, RemoteMemory, RemoteWindow};

/// Takes everything and gives zeroes.
#[derive(Debug)]
struct Elsewhere;

impl RemoteMemory for Elsewhere {
    fn read(&self, _: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        into.fill(0);
        Ok(())
    }

    fn write(&self, _: GuestAddr, _: &[u8]) -> Result<(), MemoryError> {
        Ok(())
    }
}

/// Largest amount that this process has had, in bytes.
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn requests_of_the_largest_size_have_the_memory_of_one() {
    const BYTES: u64 = 252 << 20;
    let images = Images::on_disk();
    let path = images.0.path().join("image");
    // Sparse: nothing is read from a device.
    std::fs::File::create(&path).unwrap().set_len(BYTES).unwrap();
    let window = RemoteWindow { addr: GuestAddr(0), len: BYTES, memory: Arc::new(Elsewhere) };
    let memory = MappedMemory::with_remote(Vec::new(), vec![window]).unwrap();
    let (backend, segment) = (open(&path, CacheMode::WriteBack), [guest(0, BYTES as u32)]);
    let mut disk = backend.handle().unwrap();
    let op = Op::Read { extent: Extent::new(0, BYTES / 512) };
    let (before, deadline) = (most_memory(), Instant::now() + Duration::from_secs(120));
    for slot in 0..32 {
        let _ = disk.submit(&memory, tag(slot), op, &segment).unwrap();
    }
    assert_ne!(backend.budgets().waiting, 0);
    let mut ended = 0;
    while ended < 32 {
        assert!(disk.wait(Some(Duration::from_secs(60))), "its end is told");
        while let Some(completion) = disk.poll(&memory) {
            assert_eq!(completion.result, Ok(()));
            ended += 1;
        }
        assert!(Instant::now() < deadline);
    }
    let report = backend.budgets();
    assert_eq!((report.private_memory.peak, report.private_memory.used), (BYTES, 0), "one at a time");
    assert_eq!((report.bytes_in_flight.peak, report.bytes_in_flight.used), (BYTES, 0));
    assert_eq!(report.waiting, 0);
    let grown = most_memory() - before;
    assert!(grown < (256 << 20) + (16 << 20), "{grown}");
}
