//! Random requests on a host that interrupts, stops short and fails at random. The seed is printed when it fails; run it
//! again with `HOST_STD_SEED=n`.

mod common;

use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use blk_core::op::{Op, Segment};
use blk_core::storage::CacheMode;
use blk_core::units::Extent;
use common::*;
use host_std::backend::{FileBackend, FileOptions, IoEngine, IoVecs, LinuxSyscalls, Syscalls};
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, Result};

/// xorshift64* (Vigna, 2016): as much randomness as this takes.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

struct Chaotic(Mutex<Random>);

impl Chaotic {
    /// A write may move nothing. A read that does has met the end of a file that was cut short, which latches.
    fn transfer(
        &self,
        write: bool,
        iovecs: &IoVecs,
        call: impl Fn(&IoVecs) -> Result<usize>,
    ) -> Result<usize> {
        let (what, short) = {
            let mut random = self.0.lock().unwrap();
            (random.below(16), 512 * (1 + random.below(8) as usize))
        };
        match what {
            0 => Err(Errno::IO),
            1 => Err(Errno::NOSPC),
            2 if write => Ok(0),
            2..6 => Err(Errno::INTR),
            6..12 => iovecs.with_prefix(short, call),
            _ => call(iovecs),
        }
    }

    fn range(&self, call: impl Fn() -> Result<()>) -> Result<()> {
        match self.0.lock().unwrap().below(8) {
            0 => Err(Errno::IO),
            1 => Err(Errno::INTR),
            2..4 => Err(Errno::OPNOTSUPP),
            _ => call(),
        }
    }
}

impl Syscalls for Chaotic {
    fn read(&self, fd: BorrowedFd<'_>, into: &IoVecs, offset: u64) -> Result<usize> {
        self.transfer(false, into, |iovecs| LinuxSyscalls.read(fd, iovecs, offset))
    }

    fn write(&self, fd: BorrowedFd<'_>, from: &IoVecs, offset: u64, dsync: bool) -> Result<usize> {
        self.transfer(true, from, |iovecs| LinuxSyscalls.write(fd, iovecs, offset, dsync))
    }

    fn fdatasync(&self, fd: BorrowedFd<'_>) -> Result<()> {
        if self.0.lock().unwrap().below(4) == 0 { Err(Errno::INTR) } else { LinuxSyscalls.fdatasync(fd) }
    }

    fn fallocate(&self, fd: BorrowedFd<'_>, mode: FallocateFlags, offset: u64, bytes: u64) -> Result<()> {
        self.range(|| LinuxSyscalls.fallocate(fd, mode, offset, bytes))
    }

    fn block_discard(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        self.range(|| LinuxSyscalls.block_discard(fd, offset, bytes))
    }

    fn block_zero(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        self.range(|| LinuxSyscalls.block_zero(fd, offset, bytes))
    }

    fn may_run_inline(&self) -> bool {
        true
    }

    fn read_now(&self, fd: BorrowedFd<'_>, into: &IoVecs, offset: u64) -> Result<usize> {
        self.transfer(false, into, |iovecs| LinuxSyscalls.read_now(fd, iovecs, offset))
    }

    fn write_now(&self, fd: BorrowedFd<'_>, from: &IoVecs, offset: u64) -> Result<usize> {
        self.transfer(true, from, |iovecs| LinuxSyscalls.write_now(fd, iovecs, offset))
    }

    fn ring(&self) -> bool {
        true
    }

    fn ring_ended(&self, write: bool, result: Result<usize>) -> Result<usize> {
        let mut random = self.0.lock().unwrap();
        match random.below(16) {
            0 => Err(Errno::IO),
            1 => Err(Errno::NOSPC),
            2 if write => Ok(0),
            2 | 3 => Err(Errno::INTR),
            4 => Err(Errno::AGAIN),
            // It is done all the same, once more.
            5..9 => result.map(|moved| moved.min(512 * (1 + random.below(8) as usize))),
            _ => result,
        }
    }
}

/// What each sector may hold: after a request that succeeded exactly what it left, after one that failed that or what was
/// there before.
struct Model(Vec<Vec<u8>>);

impl Model {
    fn change(&mut self, extent: Extent, value: u8, certain: bool) {
        let start = extent.start.0 as usize;
        for sector in &mut self.0[start..start + extent.sectors as usize] {
            if certain {
                sector.clear();
            }
            sector.push(value);
        }
    }
}

fn soak(seed: u64, mode: CacheMode, engine: IoEngine, images: &Images) {
    const SECTORS: u64 = 96;
    let mut random = Random(seed | 1);
    let path = images.image("image", SECTORS as usize * 512);
    let host = Chaotic(Mutex::new(Random(seed.rotate_left(32) | 1)));
    let Ok(backend) = FileBackend::open_on(host, &path, &FileOptions { engine, ..options(mode) }) else {
        return println!("skipped: no {} here", mode.name());
    };
    let (mut disk, memory) = (backend.handle().unwrap(), memory());
    let mut model = Model(vec![vec![0xee]; SECTORS as usize]);
    let mut failed = 0;
    for step in 0..400 {
        let start = random.below(SECTORS);
        let extent = Extent::new(start, 1 + random.below(SECTORS - start));
        let bytes = extent.sectors as u32 * 512;
        // Two pieces, cut at a sector or anywhere.
        let cut = if random.below(2) == 0 {
            random.below(bytes.into())
        } else {
            512 * random.below(extent.sectors)
        };
        let pieces = [guest(0x1000, cut as u32), guest(0x4_0000, bytes - cut as u32)];
        let value = step as u8;
        let (op, segments): (Op, &[Segment]) = match random.below(8) {
            0 => (Op::Flush, &[]),
            1 => (Op::WriteZeroes { extent, may_unmap: random.below(2) == 0 }, &[]),
            2 => (Op::Discard { extent }, &[]),
            3..5 => (Op::Write { extent, fua: false }, &pieces),
            _ => (Op::Read { extent }, &pieces),
        };
        let fresh = if matches!(op, Op::Write { .. }) { value } else { !value };
        fill(&memory, 0x1000, cut as usize, fresh);
        fill(&memory, 0x4_0000, bytes as usize - cut as usize, fresh);
        let done = run(&mut disk, &memory, op, segments);
        failed += u32::from(done.is_err());
        match op {
            Op::Flush => assert_eq!(done, Ok(()), "fdatasync was interrupted at most"),
            Op::Write { .. } => model.change(extent, value, done.is_ok()),
            Op::WriteZeroes { .. } => model.change(extent, 0, done.is_ok()),
            Op::Discard { .. } => model.change(extent, 0, false),
            Op::Hold { .. } | Op::LoadState { .. } | Op::StoreState { .. } => unreachable!("none is made"),
            Op::Read { .. } if done.is_ok() => {
                let back = [
                    peek(&memory, 0x1000, cut as usize),
                    peek(&memory, 0x4_0000, (bytes as u64 - cut) as usize),
                ];
                for (n, sector) in back.concat().chunks(512).enumerate() {
                    let allowed = &mut model.0[start as usize + n];
                    assert!(
                        sector.iter().all(|&byte| byte == sector[0]),
                        "sector {n} is torn at step {step}"
                    );
                    assert!(allowed.contains(&sector[0]), "sector {n} holds {} at step {step}", sector[0]);
                    // What was seen stays.
                    *allowed = vec![sector[0]];
                }
            }
            Op::Read { .. } => {}
        }
    }
    assert!(failed > 20, "the host did fail");
    assert_eq!(backend.latched(), None);
}

#[test]
fn whatever_the_host_does_what_was_acknowledged_is_there() {
    let given = std::env::var("HOST_STD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = given.map_or(1..=5, |seed: u64| seed..=seed);
    for seed in seeds {
        let places = [Images::in_memory(), Some(Images::on_disk())];
        for images in places.iter().flatten() {
            for mode in [CacheMode::WriteBack, CacheMode::None] {
                for engine in IoEngine::ALL {
                    println!(
                        "HOST_STD_SEED={seed} {} {} {}",
                        mode.name(),
                        engine.name(),
                        images.0.path().display()
                    );
                    soak(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15), mode, engine, images);
                }
            }
        }
    }
}
