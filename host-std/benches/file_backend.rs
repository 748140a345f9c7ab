//! What the file backend costs beside plain system calls: requests a second of each engine, on a file in memory and on a disk's.
//!
//! `cargo bench -p host-std --bench file_backend [-- DIR...]` measures files in /dev/shm and in the build's directory, or in the
//! directories given. The yardstick is one thread in a loop of pread, pwrite and fdatasync, one at a time. All take turns, and
//! medians are shown: what else the machine does falls on all alike. Nothing is asserted.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blk_core::op::{Op, Segment};
use blk_core::storage::{CacheMode, Storage};
use blk_core::units::{Extent, GuestAddr, Tag};
use host_std::backend::{FileBackend, FileOptions, FileStorage, IoEngine};
use host_std::memory::MappedMemory;

const BLOCK: usize = 4096;
const IMAGE_BYTES: usize = 64 << 20;
const BLOCKS: u64 = (IMAGE_BYTES / BLOCK) as u64;
const ROUNDS: usize = 7;
const TURN: Duration = Duration::from_millis(15);

/// What is repeated, and how many at a time.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    kind: Kind,
    depth: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// A write, and once it is done a flush: counted as one.
    Pair,
}

const LOADS: [Load; 5] = [
    Load { name: "read, 1 at a time", kind: Kind::Read, depth: 1 },
    Load { name: "read, 32", kind: Kind::Read, depth: 32 },
    Load { name: "write, 1", kind: Kind::Write, depth: 1 },
    Load { name: "write, 32", kind: Kind::Write, depth: 32 },
    Load { name: "write and flush, 1", kind: Kind::Pair, depth: 1 },
];

/// Somebody who serves a load.
trait Subject {
    /// Serves requests for one turn; returns how many.
    fn turn(&mut self, load: Load) -> u64;
}

/// Blocks in no order (xorshift, Marsaglia 2003), so that a disk cannot read ahead.
struct Blocks(u64);

impl Blocks {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % BLOCKS
    }
}

/// pread, pwrite and fdatasync.
struct Plain {
    file: File,
    buffer: Vec<u8>,
    /// Where `buffer` is aligned for direct I/O.
    skip: usize,
    blocks: Blocks,
}

impl Plain {
    fn new(path: &Path, mode: CacheMode) -> std::io::Result<Self> {
        let flags = if mode.direct() { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        let buffer = vec![0x5a; 2 * BLOCK];
        let skip = buffer.as_ptr().align_offset(BLOCK);
        Ok(Self { file, buffer, skip, blocks: Blocks(1) })
    }
}

impl Subject for Plain {
    fn turn(&mut self, load: Load) -> u64 {
        let block = &mut self.buffer[self.skip..self.skip + BLOCK];
        let (began, mut done) = (Instant::now(), 0);
        while began.elapsed() < TURN {
            let at = self.blocks.next() * BLOCK as u64;
            match load.kind {
                Kind::Read => self.file.read_exact_at(block, at).expect("pread"),
                Kind::Write => self.file.write_all_at(block, at).expect("pwrite"),
                Kind::Pair => {
                    self.file.write_all_at(block, at).expect("pwrite");
                    self.file.sync_data().expect("fdatasync");
                }
            }
            done += 1;
        }
        done
    }
}

/// A handle, served as a queue's thread does: submit, poll, sleep if nothing has ended.
struct Handle {
    disk: FileStorage,
    memory: MappedMemory,
    blocks: Blocks,
    _backend: FileBackend,
}

impl Handle {
    fn new(path: &Path, mode: CacheMode, engine: IoEngine) -> Result<Self, Box<dyn std::error::Error>> {
        let options = FileOptions { engine, lock: false, ..FileOptions::new(mode) };
        let backend = FileBackend::open(path, &options)?;
        let memory = MappedMemory::anonymous(&[(GuestAddr(0), 128 * BLOCK)])?;
        Ok(Self { disk: backend.handle()?, memory, blocks: Blocks(1), _backend: backend })
    }

    fn submit(&mut self, slot: u16, op: Op) {
        let addr = GuestAddr(u64::from(slot) * BLOCK as u64);
        let data = [Segment::Guest { addr, len: BLOCK as u32 }];
        let segments: &[Segment] = if op == Op::Flush { &[] } else { &data };
        let _ = self.disk.submit(&self.memory, Tag { slot, generation: 0 }, op, segments).expect("room");
    }

    fn begin(&mut self, slot: u16, kind: Kind) {
        let sectors = BLOCK as u64 / 512;
        let extent = Extent::new(self.blocks.next() * sectors, sectors);
        let op = if kind == Kind::Read { Op::Read { extent } } else { Op::Write { extent, fua: false } };
        self.submit(slot, op);
    }
}

impl Subject for Handle {
    fn turn(&mut self, load: Load) -> u64 {
        // Whether a slot's write has been done and its flush is under way.
        let mut flushing = [false; 32];
        let (began, mut done) = (Instant::now(), 0);
        for slot in 0..load.depth {
            self.begin(slot, load.kind);
        }
        while self.disk.in_use() != 0 {
            let mut ended = [0; 32];
            let mut count = 0;
            while let Some(completion) = self.disk.poll(&self.memory) {
                completion.result.expect("success");
                ended[count] = completion.tag.slot;
                count += 1;
            }
            if count == 0 {
                self.disk.wait(None);
            }
            let more = began.elapsed() < TURN;
            for &slot in &ended[..count] {
                let flushing = &mut flushing[usize::from(slot)];
                if load.kind == Kind::Pair && !*flushing {
                    *flushing = true;
                    self.submit(slot, Op::Flush);
                    continue;
                }
                *flushing = false;
                done += 1;
                if more {
                    self.begin(slot, load.kind);
                }
            }
        }
        done
    }
}

/// Requests in thousands a second: the medians of all, who take turns.
fn medians(subjects: &mut [(&str, Box<dyn Subject>)], load: Load) -> Vec<f64> {
    let mut rates = vec![Vec::new(); subjects.len()];
    for _ in 0..ROUNDS {
        for ((_, subject), rates) in subjects.iter_mut().zip(&mut rates) {
            let began = Instant::now();
            let done = subject.turn(load);
            rates.push(done as f64 / began.elapsed().as_secs_f64() / 1000.0);
        }
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    rates.iter_mut().map(median).collect()
}

fn measure(path: &Path, mode: CacheMode) -> Result<(), Box<dyn std::error::Error>> {
    let mut subjects: Vec<(&str, Box<dyn Subject>)> = vec![("plain", Box::new(Plain::new(path, mode)?))];
    for engine in IoEngine::ALL {
        match Handle::new(path, mode, engine) {
            Ok(handle) => subjects.push((engine.name(), Box::new(handle))),
            Err(error) => println!("skipped: {error}"),
        }
    }
    println!("\n{}, {}; thousands of 4 KiB requests a second", path.display(), mode.name());
    print!("{:<20}", "");
    for (name, _) in &subjects {
        print!("{name:>10}");
    }
    println!("{:>14}", "auto / plain");
    let auto = subjects.iter().position(|(name, _)| *name == IoEngine::Auto.name()).unwrap_or(0);
    for load in LOADS {
        let rates = medians(&mut subjects, load);
        print!("{:<20}", load.name);
        for rate in &rates {
            print!("{rate:>10.1}");
        }
        println!("{:>14.2}", rates[auto] / rates[0]);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let mut dirs: Vec<PathBuf> = given.map(PathBuf::from).collect();
    if dirs.is_empty() {
        dirs = vec!["/dev/shm".into(), env!("CARGO_TARGET_TMPDIR").into()];
    }
    for dir in dirs {
        let dir = tempfile::tempdir_in(dir)?;
        let path = dir.path().join("image");
        // Written, not sparse: the first write to a hole is another thing.
        std::fs::write(&path, vec![0x5a; IMAGE_BYTES])?;
        File::open(&path)?.sync_all()?;
        for mode in [CacheMode::WriteBack, CacheMode::None] {
            measure(&path, mode)?;
        }
    }
    Ok(())
}
