//! Every loss of power, every single damage.

use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use blk_core::storage::CacheMode;
use rustix::fs::FallocateFlags;
use rustix::io::Result;

use super::*;
use crate::backend::iovecs::IoVecs;

const KEY: StateKey = StateKey(7);
const SECTOR: usize = 512;

/// What the file was asked to do.
#[derive(Clone, Debug)]
enum Call {
    Write(u64, Vec<u8>),
    Sync,
}

/// Records the calls, and makes them.
#[derive(Default)]
struct Recorded(Mutex<Vec<Call>>);

impl Syscalls for Recorded {
    fn write_record(&self, fd: BorrowedFd<'_>, from: &[u8], offset: u64) -> Result<usize> {
        // In pieces, as the kernel may.
        let from = &from[..from.len().min(1000)];
        lock(&self.0).push(Call::Write(offset, from.to_vec()));
        rustix::io::pwrite(fd, from, offset)
    }

    fn fdatasync(&self, _fd: BorrowedFd<'_>) -> Result<()> {
        lock(&self.0).push(Call::Sync);
        Ok(())
    }

    fn read(&self, _: BorrowedFd<'_>, _: &IoVecs, _: u64) -> Result<usize> {
        Err(Errno::IO)
    }

    fn write(&self, _: BorrowedFd<'_>, _: &IoVecs, _: u64, _: bool) -> Result<usize> {
        Err(Errno::IO)
    }

    fn fallocate(&self, _: BorrowedFd<'_>, _: FallocateFlags, _: u64, _: u64) -> Result<()> {
        Err(Errno::IO)
    }

    fn block_discard(&self, _: BorrowedFd<'_>, _: u64, _: u64) -> Result<()> {
        Err(Errno::IO)
    }

    fn block_zero(&self, _: BorrowedFd<'_>, _: u64, _: u64) -> Result<()> {
        Err(Errno::IO)
    }
}

/// A folder with an image, and the file of its records.
struct Bench {
    folder: tempfile::TempDir,
    image: Image,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, [0; 4096]).unwrap();
        Self { image: Image::open(&path, &FileOptions::new(CacheMode::WriteBack)).unwrap(), folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("image.state")
    }

    fn try_open(&self, calls: &Recorded) -> std::result::Result<StateFile, String> {
        let options = FileOptions { state: StatePlace::Beside, ..FileOptions::new(CacheMode::WriteBack) };
        let opened = StateFile::open(calls, &self.image, &options).map_err(|error| error.to_string());
        opened.map(|state| state.expect("the folder is ours"))
    }

    /// What a file with these contents holds.
    fn record_in(&self, bytes: &[u8], key: StateKey) -> Vec<u8> {
        std::fs::write(self.path(), bytes).unwrap();
        self.try_open(&Recorded::default()).unwrap().with_record(key, <[u8]>::to_vec)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }
}

/// Every state of the file after a loss of power during `calls`: before each of them, what was stable is there, and of what was
/// written since, each sector or not; or, of `few` states, all but one sector, one, all or none. `each` also hears whether all calls
/// had been made.
fn power_cuts(before: &[u8], calls: &[Call], few: bool, mut each: impl FnMut(&[u8], bool)) {
    let mut stable = before.to_vec();
    let mut volatile: Vec<(usize, Vec<u8>)> = Vec::new();
    for at in 0..=calls.len() {
        assert!(volatile.len() <= 9, "one copy is on its way at a time");
        for subset in 0_u32..1 << volatile.len() {
            let landed = subset.count_ones() as usize;
            if few && landed > 1 && landed + 1 < volatile.len() {
                continue;
            }
            let mut state = stable.clone();
            let landed = volatile.iter().enumerate().filter(|(n, _)| subset >> n & 1 != 0);
            landed.for_each(|(_, (at, bytes))| state[*at..][..bytes.len()].copy_from_slice(bytes));
            each(&state, at == calls.len());
        }
        match calls.get(at) {
            Some(Call::Write(offset, bytes)) => {
                // A sector lands whole; where a call ends in one, in two parts: worse than any disk.
                let mut start = *offset as usize;
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (sector, more) = rest.split_at(rest.len().min(SECTOR - start % SECTOR));
                    if let Some((_, last)) = volatile
                        .last_mut()
                        .filter(|(at, last)| !start.is_multiple_of(SECTOR) && at + last.len() == start)
                    {
                        last.extend_from_slice(sector);
                    } else {
                        volatile.push((start, sector.to_vec()));
                    }
                    (start, rest) = (start + sector.len(), more);
                }
            }
            Some(Call::Sync) => {
                for (at, bytes) in volatile.drain(..) {
                    stable[at..][..bytes.len()].copy_from_slice(&bytes);
                }
            }
            None => {}
        }
    }
}

#[test]
fn a_loss_of_power_at_any_point_leaves_the_old_record_or_the_new_one() {
    let bench = Bench::new();
    let mut old = Vec::new();
    for new in [vec![1; 3584], vec![2; 3584], vec![3; 700]] {
        let calls = Recorded::default();
        let state = bench.try_open(&calls).unwrap();
        let before = bench.bytes();
        state.store(&calls, KEY, &new, true).unwrap();
        state.store(&calls, StateKey(9), &[9], true).unwrap();
        drop(state);
        let after = bench.bytes();
        let calls = calls.0.into_inner().unwrap();
        let second = calls.len() / 2;
        let cuts = Bench::new();
        let (mut seen, mut states) = ([false; 2], 0);
        power_cuts(&before, &calls[..second], false, |state, over| {
            let record = cuts.record_in(state, KEY);
            assert!(record == new || (record == old && !over), "{} bytes", record.len());
            seen[usize::from(record == new)] = true;
            states += 1;
        });
        assert!(seen == [true; 2] && states > 512, "{seen:?} in {states}");
        // The neighbour changes nothing of it.
        let one = |n: usize| calls[second..].iter().take(n).cloned().collect::<Vec<_>>();
        power_cuts(&after, &one(2), false, |state, _| assert_eq!(cuts.record_in(state, KEY), new));
        old = new;
    }
}

/// The file is repaired when it is opened: the next loss of power finds two copies again.
#[test]
fn a_second_loss_of_power_after_the_first_leaves_what_was_seen_between_them() {
    let bench = Bench::new();
    let calls = Recorded::default();
    let state = bench.try_open(&calls).unwrap();
    state.store(&calls, KEY, &[1; 2000], true).unwrap();
    let before = bench.bytes();
    lock(&calls.0).clear();
    state.store(&calls, KEY, &[2; 2000], true).unwrap();
    drop(state);
    let (cuts, again) = (Bench::new(), Bench::new());
    let mut number = 0_u32;
    power_cuts(&before, &calls.0.into_inner().unwrap(), true, |torn, _| {
        number += 1;
        // One in so many: each has hundreds of its own.
        if !number.is_multiple_of(11) {
            return;
        }
        std::fs::write(cuts.path(), torn).unwrap();
        let calls = Recorded::default();
        let state = cuts.try_open(&calls).unwrap();
        let seen = state.with_record(KEY, <[u8]>::to_vec);
        // The repair, too, may be cut.
        state.store(&calls, KEY, &[3; 2000], true).unwrap();
        drop(state);
        power_cuts(torn, &calls.0.into_inner().unwrap(), true, |state, over| {
            let record = again.record_in(state, KEY);
            assert!(record == [3; 2000] || (record == seen && !over), "{:?}", record.first());
        });
    });
}

#[test]
fn one_damaged_copy_loses_nothing_and_two_are_refused() {
    let bench = Bench::new();
    let calls = Recorded::default();
    let state = bench.try_open(&calls).unwrap();
    state.store(&calls, StateKey(1), &[1], true).unwrap();
    state.store(&calls, KEY, b"kept", true).unwrap();
    drop(state);
    let whole = bench.bytes();
    let damage = |halves: &[usize], at: usize| {
        let mut bytes = whole.clone();
        halves.iter().for_each(|&half| bytes[offset(half, 1) as usize + at] ^= 0x40);
        bytes
    };
    for at in (0..COPY_BYTES).step_by(131) {
        for half in [0, 1] {
            assert_eq!(bench.record_in(&damage(&[half], at), KEY), b"kept", "byte {at} of copy {half}");
            assert_eq!(bench.bytes(), whole, "it is repaired");
        }
        std::fs::write(bench.path(), damage(&[0, 1], at)).unwrap();
        let error = bench.try_open(&calls).err().expect("damaged");
        assert!(error.contains("image.state: is damaged"), "{error}");
        assert!(error.contains("restore it from a backup, or remove it"), "{error}");
    }
    for bytes in [&whole[..whole.len() - 1], &whole[..4096], b"x", &[0xff; FILE_BYTES as usize]] {
        std::fs::write(bench.path(), bytes).unwrap();
        let error = bench.try_open(&calls).err().expect("no file of records");
        assert!(error.contains("image.state: is"), "{error}");
    }
}

#[test]
fn records_of_all_keys_are_kept_apart_until_there_is_no_room() {
    let bench = Bench::new();
    let calls = Recorded::default();
    let state = bench.try_open(&calls).unwrap();
    assert_eq!(state.with_record(KEY, <[u8]>::len), 0);
    for key in 0..PLACES as u32 {
        state.store(&calls, StateKey(key << 16), &key.to_le_bytes(), true).unwrap();
    }
    assert_eq!(state.store(&calls, KEY, &[1], true), Err(StoreError::Full));
    state.store(&calls, StateKey(3 << 16), b"", true).unwrap();
    lock(&calls.0).clear();
    state.store(&calls, StateKey(4 << 16), b"unsafe", false).unwrap();
    assert!(!lock(&calls.0).iter().any(|call| matches!(call, Call::Sync)));
    drop(state);
    let state = bench.try_open(&calls).unwrap();
    for key in 0..PLACES as u32 {
        let expected = match key {
            3 => vec![],
            4 => b"unsafe".to_vec(),
            key => key.to_le_bytes().to_vec(),
        };
        assert_eq!(state.with_record(StateKey(key << 16), <[u8]>::to_vec), expected);
    }
}

#[test]
fn a_file_of_records_has_one_image_and_goes_with_one_that_is_not_served() {
    let bench = Bench::new();
    let calls = Recorded::default();
    let state = bench.try_open(&calls).unwrap();
    let error = bench.try_open(&calls).err().expect("in use");
    assert!(error.contains("another image's records"), "{error}");
    state.undo();
    assert!(!bench.path().exists());
    drop(state);
    let state = bench.try_open(&calls).unwrap();
    state.store(&calls, KEY, &[1], true).unwrap();
    state.undo();
    assert!(bench.path().exists(), "it holds a record");
}
