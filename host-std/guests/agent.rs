//! The guest's part of the tests: what a shell cannot do well. A single file without dependencies, compiled by the harness.
//!
//! ```text
//! agent work DIR SEED STEPS       uses files in every way that is made stable by an fsync, and says what was acknowledged
//! agent files DIR                 says what all files hold
//! agent compare DEVICE BYTES CHUNK THREADS SEED     writes all of it, in parallel, and reads it back, with O_DIRECT
//! agent hammer DEVICE SECONDS THREADS SEED    goes on writing, flushing and reading back, and says what it saw
//! agent time DEVICE BYTES CHUNK THREADS    reads so much from the beginning with O_DIRECT, and says how long it took
//! agent stream DEVICE BYTES CHUNK   the same through the page cache, which holds nothing of it at first
//! agent scatter DEVICE COUNT CHUNK THREADS SEED    the same with chunks here and there
//! agent looks DEVICE COUNT        reads a register of the AHCI that has the disk, and says how long that took
//! agent one DEVICE SECTOR VERSION   writes one sector with O_DIRECT; `agent read DEVICE SECTOR` says which version is there
//! agent stable DEVICE SECTOR VERSION   writes one with O_DSYNC as well
//! agent reset DEVICE              resets the SCSI logical unit
//! ```
//!
//! Everything is written in units of a sector that say of themselves to which file they belong, which one of it they are, and
//! which version, with a checksum: a sector can be judged by itself, and no sector is torn.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const UNIT: usize = 512;
const MAGIC: u64 = u64::from_le_bytes(*b"blk-unit");

// Of x86-64 Linux (asm-generic/fcntl.h).
const O_DIRECT: i32 = 0o40000;
const O_DSYNC: i32 = 0o10000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["work", dir, seed, steps] => {
            Work::new(dir, number(seed)).and_then(|mut work| work.run(number(steps)))
        }
        ["files", dir] => files(Path::new(dir)),
        ["compare", device, bytes, chunk, threads, seed] => {
            compare(device, number(bytes), number(chunk) as usize, number(threads), number(seed))
        }
        ["hammer", device, seconds, threads, seed] => {
            hammer(device, Duration::from_secs(number(seconds)), number(threads), number(seed))
        }
        ["time", device, bytes, chunk, threads] => {
            let (count, chunk) = (number(bytes) / number(chunk), number(chunk));
            timed(device, O_DIRECT, chunk as usize, number(threads), &(0..count).collect::<Vec<_>>())
        }
        ["stream", device, bytes, chunk] => {
            let (count, chunk) = (number(bytes) / number(chunk), number(chunk));
            fs::write("/proc/sys/vm/drop_caches", "3")
                .and_then(|()| timed(device, 0, chunk as usize, 1, &(0..count).collect::<Vec<_>>()))
        }
        ["scatter", device, count, chunk, threads, seed] => {
            let mut random = Random(number(seed));
            let chunks = size(device).map(|bytes| bytes / number(chunk));
            chunks.and_then(|chunks| {
                let places: Vec<_> = (0..number(count)).map(|_| random.below(chunks)).collect();
                timed(device, O_DIRECT, number(chunk) as usize, number(threads), &places)
            })
        }
        ["looks", device, count] => looks(device, number(count)),
        ["one", device, sector, version] => one(device, 0, number(sector), number(version)),
        ["stable", device, sector, version] => one(device, O_DSYNC, number(sector), number(version)),
        ["read", device, sector] => read(device, number(sector)),
        ["reset", device] => reset(device),
        _ => Err(io::Error::other("wrong arguments")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("=ERROR {}: {error}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("not a number: {text}"))
}

/// FNV-1a: enough to tell a unit from chance.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Unit `index` of version `version` of `what`.
fn unit(what: u64, index: u64, version: u64, into: &mut [u8]) {
    for (at, word) in [MAGIC, what, index, version].into_iter().enumerate() {
        into[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
    let mut random = Random(what ^ index.rotate_left(20) ^ version.rotate_left(40));
    for word in into[32..UNIT - 8].chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    let sum = hash(&into[..UNIT - 8]);
    into[UNIT - 8..].copy_from_slice(&sum.to_le_bytes());
}

/// Which version of unit `index` of `what` this is.
fn version_of(what: u64, index: u64, unit: &[u8]) -> Option<u64> {
    let word = |at: usize| u64::from_le_bytes(unit[at..at + 8].try_into().expect("eight bytes"));
    let whole = word(UNIT - 8) == hash(&unit[..UNIT - 8]);
    (whole && word(0) == MAGIC && word(8) == what && word(16) == index).then(|| word(24))
}

fn units(what: u64, from: u64, count: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; count as usize * UNIT];
    for (index, into) in (from..).zip(bytes.chunks_exact_mut(UNIT)) {
        unit(what, index, version, into);
    }
    bytes
}

/// A buffer aligned as O_DIRECT may want it.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Self { bytes, start, len }
    }

    fn from(from: &[u8]) -> Self {
        let mut buffer = Self::new(from.len());
        buffer.get().copy_from_slice(from);
        buffer
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

const DATA_UNITS: u64 = 128;
const SYNC_UNITS: u64 = 16;

/// The workload. Before it changes a file it says so and waits until the harness has noted it; after the change is stable it
/// says that. Between the two, the old and the new are both right, and after that only the new.
struct Work<'a> {
    dir: &'a Path,
    random: Random,
    log_units: u64,
    version: u64,
    /// Files that are there and not to be changed.
    kept: Vec<String>,
}

impl<'a> Work<'a> {
    fn new(dir: &'a str, seed: u64) -> io::Result<Self> {
        Ok(Self { dir: Path::new(dir), random: Random(seed), log_units: 0, version: 0, kept: Vec::new() })
    }

    fn run(&mut self, steps: u64) -> io::Result<()> {
        self.write_whole("data", DATA_UNITS)?;
        self.direct_sync()?;
        self.append()?;
        self.replace()?;
        for step in 0..steps {
            self.noise(step)?;
            match self.random.below(8) {
                0 | 1 => self.create(step)?,
                2 => self.append()?,
                3 => self.write_whole("data", DATA_UNITS)?,
                4 => self.direct_sync()?,
                5 => self.replace()?,
                6 => self.remove()?,
                _ => self.several(step)?,
            }
        }
        Ok(())
    }

    /// A version will be written. Returns its number, once the harness has noted it.
    fn start(&mut self, name: &str, units: u64) -> io::Result<u64> {
        self.version += 1;
        confirm(&format!("=START {name} {} {units}", self.version))?;
        Ok(self.version)
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(self.dir)?.sync_all()
    }

    /// Stays in the caches, so that there is something to lose, and to be flushed beside what counts.
    fn noise(&mut self, step: u64) -> io::Result<()> {
        let bytes = vec![step as u8; self.random.below(64 * 1024) as usize];
        fs::write(self.dir.join(format!("noise{}", step % 4)), bytes)
    }

    fn create(&mut self, step: u64) -> io::Result<()> {
        let name = format!("new{step}");
        let count = 1 + self.random.below(100);
        let version = self.start(&name, count)?;
        let mut file = File::create_new(self.dir.join(&name))?;
        file.write_all(&units(hash(name.as_bytes()), 0, count, version))?;
        file.sync_all()?;
        self.sync_dir()?;
        println!("=ACK {name} {version} {count}");
        self.kept.push(name);
        Ok(())
    }

    /// Several files, made stable by one sync of the file system.
    fn several(&mut self, step: u64) -> io::Result<()> {
        unsafe extern "C" {
            safe fn sync();
        }
        let mut made = Vec::new();
        for n in 0..4 {
            let name = format!("many{step}.{n}");
            let version = self.start(&name, 8)?;
            fs::write(self.dir.join(&name), units(hash(name.as_bytes()), 0, 8, version))?;
            made.push((name, version));
        }
        sync();
        for (name, version) in made {
            println!("=ACK {name} {version} 8");
            self.kept.push(name);
        }
        Ok(())
    }

    /// The units of a log all have version 1: what counts is how many there are.
    fn append(&mut self) -> io::Result<()> {
        let more = 1 + self.random.below(20);
        self.start("log", self.log_units + more)?;
        let mut file = OpenOptions::new().append(true).create(true).open(self.dir.join("log"))?;
        file.write_all(&units(hash(b"log"), self.log_units, more, 1))?;
        file.sync_data()?;
        if self.log_units == 0 {
            self.sync_dir()?;
        }
        self.log_units += more;
        println!("=ACK log 1 {}", self.log_units);
        Ok(())
    }

    /// Overwrites a file in place, in a few pieces.
    fn write_whole(&mut self, name: &str, count: u64) -> io::Result<()> {
        let version = self.start(name, count)?;
        let path = self.dir.join(name);
        let first = !path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        for from in (0..count).step_by(16) {
            file.write_all_at(&units(hash(name.as_bytes()), from, 16, version), from * UNIT as u64)?;
        }
        file.sync_data()?;
        if first {
            self.sync_dir()?;
        }
        println!("=ACK {name} {version} {count}");
        Ok(())
    }

    /// Overwrites a file in place with O_DIRECT and O_DSYNC: stable when the write returns. The file is written with an
    /// fsync the first time, so that later ones change nothing but data.
    fn direct_sync(&mut self) -> io::Result<()> {
        let path = self.dir.join("sync");
        if !path.exists() {
            return self.write_whole("sync", SYNC_UNITS);
        }
        let version = self.start("sync", SYNC_UNITS)?;
        let file = OpenOptions::new().write(true).custom_flags(O_DIRECT | O_DSYNC).open(path)?;
        file.write_all_at(Aligned::from(&units(hash(b"sync"), 0, SYNC_UNITS, version)).get(), 0)?;
        println!("=ACK sync {version} {SYNC_UNITS}");
        Ok(())
    }

    /// The usual way to replace a file: write another, fsync it, rename it, fsync the folder.
    fn replace(&mut self) -> io::Result<()> {
        let count = 1 + self.random.below(40);
        let version = self.start("config", count)?;
        let other = self.dir.join("config.new");
        let mut file = File::create(&other)?;
        file.write_all(&units(hash(b"config"), 0, count, version))?;
        file.sync_all()?;
        fs::rename(other, self.dir.join("config"))?;
        self.sync_dir()?;
        println!("=ACK config {version} {count}");
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        if self.kept.is_empty() {
            return self.append();
        }
        let at = self.random.below(self.kept.len() as u64) as usize;
        let name = self.kept.swap_remove(at);
        let version = self.start(&name, 0)?;
        fs::remove_file(self.dir.join(&name))?;
        self.sync_dir()?;
        println!("=ACK {name} {version} 0");
        Ok(())
    }
}

/// Says something and waits for a line.
fn confirm(line: &str) -> io::Result<()> {
    println!("{line}");
    let mut answer = String::new();
    match io::stdin().lock().read_line(&mut answer)? {
        0 => Err(io::Error::other("the harness is gone")),
        _ => Ok(()),
    }
}

/// `=FILE NAME BYTES RUN,RUN,...`; a run is `VERSIONxUNITS`, where VERSION is `z` for zeroes and `?` for what is neither zero
/// nor a unit that belongs there.
fn files(dir: &Path) -> io::Result<()> {
    let mut names: Vec<_> = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        let name = entry.file_name().into_string().unwrap_or_else(|name| format!("{name:?}"));
        if entry.file_type()?.is_file() && !name.starts_with("noise") && name != "config.new" {
            let bytes = fs::read(entry.path())?;
            println!("=FILE {name} {} {}", bytes.len(), runs(hash(name.as_bytes()), &bytes));
        }
    }
    Ok(())
}

fn runs(what: u64, bytes: &[u8]) -> String {
    let mut runs: Vec<(String, u64)> = Vec::new();
    for (index, unit) in (0..).zip(bytes.chunks(UNIT)) {
        let version = if unit.len() == UNIT { version_of(what, index, unit) } else { None };
        let version = match version {
            Some(version) => version.to_string(),
            None if unit.iter().all(|&byte| byte == 0) => "z".into(),
            None => "?".into(),
        };
        match runs.last_mut() {
            Some((last, count)) if *last == version => *count += 1,
            _ => runs.push((version, 1)),
        }
    }
    let runs: Vec<_> = runs.into_iter().map(|(version, count)| format!("{version}x{count}")).collect();
    if runs.is_empty() { "-".into() } else { runs.join(",") }
}

fn open(device: &str, flags: i32) -> io::Result<File> {
    use std::os::unix::fs::FileTypeExt as _;
    if !fs::metadata(device)?.file_type().is_block_device() {
        return Err(io::Error::other("not a block device"));
    }
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(device)
}

/// Each thread has a request under way, so that there are as many in flight as there are threads. Each writes every
/// `threads`th chunk; after a flush they read them back, each those of another thread.
fn compare(device: &str, bytes: u64, chunk: usize, threads: u64, seed: u64) -> io::Result<()> {
    let file = open(device, O_DIRECT)?;
    let chunks = bytes / chunk as u64;
    if chunks % 7919 == 0 {
        return Err(io::Error::other("choose another size: every chunk has to be reached"));
    }
    let (per_chunk, bad) = ((chunk / UNIT) as u64, std::sync::atomic::AtomicU64::new(0));
    let all = |check: bool| -> io::Result<()> {
        let thread = |thread: u64| -> io::Result<()> {
            let mut buffer = Aligned::new(chunk);
            for at in (thread..chunks).step_by(threads as usize) {
                // Scattered: a neighbour in time is none in place.
                let place = at.wrapping_mul(7919) % chunks;
                let (from, offset) = (place * per_chunk, place * chunk as u64);
                if check {
                    file.read_exact_at(buffer.get(), offset)?;
                    let wrong = (from..).zip(buffer.get().chunks_exact(UNIT));
                    let wrong =
                        wrong.filter(|(index, unit)| version_of(seed, *index, unit) != Some(1)).count();
                    bad.fetch_add(wrong as u64, std::sync::atomic::Ordering::Relaxed);
                } else {
                    for (index, into) in (from..).zip(buffer.get().chunks_exact_mut(UNIT)) {
                        unit(seed, index, 1, into);
                    }
                    file.write_all_at(buffer.get(), offset)?;
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads)
                .map(|number| if check { (number + 1) % threads } else { number })
                .map(|number| scope.spawn(move || thread(number)))
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })
    };
    all(false)?;
    file.sync_all()?;
    all(true)?;
    println!("=COMPARED {} {}", chunks * chunk as u64, bad.into_inner());
    Ok(())
}

/// Each thread has 64 sectors of its own. It writes one, reads back another one, flushes now and then, and knows what each
/// holds. A write that fails is an error, and a sector that holds another version than the one acknowledged is bad.
fn hammer(device: &str, time: Duration, threads: u64, seed: u64) -> io::Result<()> {
    const SECTORS: u64 = 64;
    let begin = Instant::now();
    let thread = |number: u64| -> io::Result<[u64; 3]> {
        let file = open(device, O_DIRECT)?;
        let mut random = Random(seed ^ number);
        let mut versions = [0_u64; SECTORS as usize];
        let mut buffer = Aligned::new(UNIT);
        let [mut writes, mut checks, mut bad] = [0; 3];
        let base = number * SECTORS;
        let place = |sector: u64| (base + sector) * UNIT as u64;
        let mut check = |file: &File, sector: u64, version: u64| -> io::Result<()> {
            let mut buffer = Aligned::new(UNIT);
            file.read_exact_at(buffer.get(), place(sector))?;
            checks += 1;
            bad += u64::from(version != 0 && version_of(seed, base + sector, buffer.get()) != Some(version));
            Ok(())
        };
        while begin.elapsed() < time {
            let sector = random.below(SECTORS);
            let version = &mut versions[sector as usize];
            unit(seed, base + sector, *version + 1, buffer.get());
            file.write_all_at(buffer.get(), place(sector))?;
            *version += 1;
            writes += 1;
            if writes % 16 == 0 {
                file.sync_data()?;
            }
            let other = random.below(SECTORS);
            check(&file, other, versions[other as usize])?;
        }
        file.sync_data()?;
        for sector in 0..SECTORS {
            check(&file, sector, versions[sector as usize])?;
        }
        Ok([writes, checks, bad])
    };
    let sums = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|number| scope.spawn(move || thread(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<io::Result<Vec<_>>>()
    })?;
    let sum = |at: usize| sums.iter().map(|sums| sums[at]).sum::<u64>();
    println!("=HAMMERED writes {} checks {} bad {}", sum(0), sum(1), sum(2));
    Ok(())
}

fn size(device: &str) -> io::Result<u64> {
    io::Seek::seek(&mut open(device, 0)?, io::SeekFrom::End(0))
}

/// Reads the chunks at these places, of which each thread has one under way, and says how many microseconds that took.
fn timed(device: &str, flags: i32, chunk: usize, threads: u64, places: &[u64]) -> io::Result<()> {
    let file = open(device, flags)?;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let thread = || -> io::Result<()> {
        let mut buffer = Aligned::new(chunk);
        loop {
            let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(place) = places.get(at) else { return Ok(()) };
            file.read_exact_at(buffer.get(), place * chunk as u64)?;
        }
    };
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(thread)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    println!("=TOOK {}", begin.elapsed().as_micros());
    Ok(())
}

/// Reads PxSACT of the first port (AHCI 1.3.1, 3.3.13), as a driver's interrupt handler does.
fn looks(device: &str, count: u64) -> io::Result<()> {
    const PAGE: usize = 0x1000;
    const SACT: usize = 0x134;
    // Of x86-64 Linux (asm-generic/mman-common.h).
    const PROT_READ: i32 = 1;
    const MAP_SHARED: i32 = 1;
    unsafe extern "C" {
        fn mmap(addr: *mut u8, length: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
    }
    let block = Path::new("/sys/block").join(device.trim_start_matches("/dev/")).canonicalize()?;
    let function = block.ancestors().find(|path| path.join("resource5").exists());
    let file = File::open(function.ok_or(io::ErrorKind::NotFound)?.join("resource5"))?;
    // SAFETY: a new mapping, wherever there is room.
    let registers = unsafe { mmap(std::ptr::null_mut(), PAGE, PROT_READ, MAP_SHARED, file.as_raw_fd(), 0) };
    if registers.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    let begin = Instant::now();
    for _ in 0..count {
        // SAFETY: aligned, within the page, which nobody unmaps; reading the register changes nothing.
        unsafe { registers.add(SACT).cast::<u32>().read_volatile() };
    }
    println!("=TOOK {}", begin.elapsed().as_micros());
    Ok(())
}

fn one(device: &str, flags: i32, sector: u64, version: u64) -> io::Result<()> {
    let file = open(device, O_DIRECT | flags)?;
    file.write_all_at(Aligned::from(&units(0, sector, 1, version)).get(), sector * UNIT as u64)?;
    println!("=WROTE {sector} {version}");
    Ok(())
}

fn read(device: &str, sector: u64) -> io::Result<()> {
    let mut buffer = Aligned::new(UNIT);
    let mut file = open(device, O_DIRECT)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(sector * UNIT as u64))?;
    file.read_exact(buffer.get())?;
    println!("=HOLDS {sector} {}", version_of(0, sector, buffer.get()).unwrap_or(0));
    Ok(())
}

/// SG_SCSI_RESET of the logical unit alone (scsi/sg.h): no escalation to the bus.
fn reset(device: &str) -> io::Result<()> {
    const SG_SCSI_RESET: u64 = 0x2284;
    const DEVICE_NO_ESCALATE: i32 = 0x101;
    unsafe extern "C" {
        fn ioctl(fd: i32, request: u64, ...) -> i32;
    }
    let file = open(device, 0)?;
    let what = DEVICE_NO_ESCALATE;
    // SAFETY: the request reads one int, which is there.
    match unsafe { ioctl(file.as_raw_fd(), SG_SCSI_RESET, &raw const what) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
