use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// Two regions that touch, and one at the end of all addresses.
const STARTS: [u64; 3] = [0x1000, 0x1020, 0_u64.wrapping_sub(32)];
const REGION: usize = 32;

fn words<const N: usize>() -> [AtomicU32; N] {
    [const { AtomicU32::new(0) }; N]
}

/// What an access does, on bytes of which some are memory.
#[derive(Clone, Default)]
struct Model {
    bytes: std::collections::BTreeMap<u64, u8>,
}

impl Model {
    fn new() -> Self {
        let addresses = STARTS.iter().flat_map(|start| (0..REGION as u64).map(move |at| start + at));
        Self { bytes: addresses.map(|addr| (addr, 0)).collect() }
    }

    fn range(&self, addr: u64, len: usize) -> Option<Vec<u64>> {
        let addresses: Option<Vec<_>> = (0..len as u64).map(|at| addr.checked_add(at)).collect();
        addresses.filter(|all| all.iter().all(|addr| self.bytes.contains_key(addr)))
    }

    fn read(&self, addr: u64, len: usize) -> Option<Vec<u8>> {
        Some(self.range(addr, len)?.iter().map(|addr| self.bytes[addr]).collect())
    }

    fn write(&mut self, addr: u64, from: &[u8]) -> Option<()> {
        let range = self.range(addr, from.len())?;
        range.into_iter().zip(from).for_each(|(addr, byte)| *self.bytes.get_mut(&addr).unwrap() = *byte);
        Some(())
    }
}

fn address() -> impl Strategy<Value = u64> {
    let near = (prop::sample::select(&STARTS[..]), -3_i64..40);
    near.prop_map(|(start, at)| start.wrapping_add_signed(at))
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore)]
    fn it_is_as_bytes_are(
        program in prop::collection::vec((address(), prop::collection::vec(any::<u8>(), 0..70), 0..5_u8), 1..40),
    ) {
        let all: [[AtomicU32; REGION / WORD]; 3] = [words(), words(), words()];
        let memory = AtomicMemory::new([
            Region::new(GuestAddr(STARTS[0]), &all[0]),
            Region::new(GuestAddr(STARTS[1]), &all[1]),
            Region::new(GuestAddr(STARTS[2]), &all[2]),
        ]);
        let mut model = Model::new();
        for (addr, data, kind) in program {
            let at = GuestAddr(addr);
            let aligned = addr.is_multiple_of(2);
            prop_assert_eq!(memory.contains(at, data.len() as u64), model.range(addr, data.len()).is_some());
            match kind {
                0 | 1 => {
                    let mut read = std::vec![0; data.len()];
                    let ok = memory.read(at, &mut read).is_ok();
                    prop_assert_eq!(ok.then_some(read), model.read(addr, data.len()));
                }
                // Some of what a failed write covers may have been written.
                2 if model.range(addr, data.len()).is_none() => {
                    prop_assert_eq!(memory.write(at, &data), Err(MemoryError));
                    model.bytes.iter().for_each(|(addr, byte)| memory.write(GuestAddr(*addr), &[*byte]).unwrap());
                }
                2 => prop_assert_eq!(memory.write(at, &data).ok(), model.write(addr, &data)),
                3 => {
                    let expected = model.read(addr, 2).filter(|_| aligned);
                    let expected = expected.map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
                    prop_assert_eq!(memory.load_u16_acquire(at).ok(), expected);
                }
                _ => {
                    let value = data.len() as u16 * 0x101;
                    let expected = aligned.then(|| model.write(addr, &value.to_le_bytes())).flatten();
                    prop_assert_eq!(memory.store_u16_release(at, value).ok(), expected);
                }
            }
        }
        for start in STARTS {
            let mut bytes = [0; REGION];
            memory.read(GuestAddr(start), &mut bytes).unwrap();
            prop_assert_eq!(Some(bytes.to_vec()), model.read(start, REGION));
        }
    }
}

#[test]
fn a_range_that_leaves_memory_is_refused() {
    let all = words::<8>();
    let memory = AtomicMemory::new([Region::new(GuestAddr(0x1000), &all)]);
    for (addr, len) in [(0xfff, 1), (0xfff, 2), (0x101f, 2), (0x1020, 1), (u64::MAX, 1), (u64::MAX, 2)] {
        assert_eq!(memory.read(GuestAddr(addr), &mut std::vec![0; len]), Err(MemoryError), "{addr:x}");
        assert_eq!(memory.write(GuestAddr(addr), &std::vec![0; len]), Err(MemoryError), "{addr:x}");
        assert!(!memory.contains(GuestAddr(addr), len as u64), "{addr:x}");
    }
    assert!(!memory.contains(GuestAddr(0x1000), u64::MAX));
}

/// Two threads, each of which owns some bytes of a word, and all ways to write a part of one.
#[test]
fn what_a_neighbour_writes_at_the_same_time_is_not_lost() {
    // Long enough for both threads to run at once on a machine that has other things to do.
    const TIME: Duration = Duration::from_millis(if cfg!(miri) { 0 } else { 100 });
    type Way = fn(&AtomicMemory<'_>, u16) -> bool;
    let index: Way = |memory, value| {
        memory.store_u16_release(GuestAddr(2), value).unwrap();
        memory.load_u16_acquire(GuestAddr(2)) == Ok(value)
    };
    let byte: Way = |memory, value| holds(memory, 0, &[value as u8]);
    let end: Way = |memory, value| holds(memory, 1, &[value as u8; 3]);
    // The last three bytes of one word, and the first of the next.
    let start: Way = |memory, value| holds(memory, 1, &[value as u8; 4]);
    let rest: Way = |memory, value| holds(memory, 5, &[value as u8; 3]);
    for (one, other) in [(index, byte), (byte, end), (start, rest), (start, byte)] {
        let all = words::<2>();
        let memory = AtomicMemory::new([Region::new(GuestAddr(0), &all)]);
        let both = Barrier::new(2);
        thread::scope(|scope| {
            for way in [one, other] {
                let both = &both;
                scope.spawn(move || {
                    both.wait();
                    let begun = Instant::now();
                    let mut round = 0_u16;
                    while round == 0 || begun.elapsed() < TIME {
                        (0..50).for_each(|at| assert!(way(&memory, round.wrapping_add(at)), "round {round}"));
                        round = round.wrapping_add(50);
                    }
                });
            }
        });
    }
}

fn holds(memory: &AtomicMemory<'_>, addr: u64, bytes: &[u8]) -> bool {
    let mut back = [0; 4];
    let back = &mut back[..bytes.len()];
    memory.write(GuestAddr(addr), bytes).unwrap();
    memory.read(GuestAddr(addr), back).unwrap();
    back == bytes
}

/// The data before the index, as on a ring; and aligned fields whole.
#[test]
fn an_index_publishes_what_was_written_before_it() {
    const ROUNDS: u16 = if cfg!(miri) { 50 } else { 20_000 };
    let all = words::<8>();
    let memory = AtomicMemory::new([Region::new(GuestAddr(0), &all)]);
    thread::scope(|scope| {
        scope.spawn(move || {
            for round in 1..=ROUNDS {
                let entry = u32::from(round) * 0x1_0001;
                memory.write(GuestAddr(8 + u64::from(round % 4) * 4), &entry.to_le_bytes()).unwrap();
                memory.store_u16_release(GuestAddr(2), round).unwrap();
                // The other side takes each before the next but three.
                while memory.load_u16_acquire(GuestAddr(6)).unwrap() + 3 < round {
                    thread::yield_now();
                }
            }
        });
        scope.spawn(move || {
            for round in 1..=ROUNDS {
                while memory.load_u16_acquire(GuestAddr(2)).unwrap() < round {
                    thread::yield_now();
                }
                let mut entry = [0; 4];
                memory.read(GuestAddr(8 + u64::from(round % 4) * 4), &mut entry).unwrap();
                assert_eq!(u32::from_le_bytes(entry), u32::from(round) * 0x1_0001);
                memory.store_u16_release(GuestAddr(6), round).unwrap();
            }
        });
    });
}

#[test]
#[should_panic(expected = "a region starts at a multiple of 4")]
fn a_region_that_is_not_aligned_is_refused() {
    let _ = Region::new(GuestAddr(2), &[]);
}
