//! Devices that lie, over the recorder: the crash states show what they lose.

use blk_core::op::Op;
use blk_core::storage::Cache;

use super::open;
use super::scripted::{Bench, fua, write};
use crate::replay::{CrashStates, Options, Positions};

/// How a device makes a file durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    /// A write and a flush.
    Flushes,
    /// The same, but the host is not asked.
    AcknowledgesFlushes,
    /// A write with FUA.
    Fua,
    /// The same, without the flag.
    DropsFua,
    /// A flush is submitted while its write is in flight.
    FlushesBeside,
}

/// Writes ten files of a sector each, and marks each once the device has said that it is durable. Returns the crash states
/// tried, and the marked files that were lost in them.
fn run(device: Device, positions: Positions, states_per_position: usize) -> (usize, usize) {
    let mut bench = Bench::new(Cache::WriteBack);
    for file in 0..10 {
        let value = file as u8 + 1;
        match device {
            Device::Flushes => {
                bench.run(0, write(file, 1), value);
                bench.run(1, Op::Flush, 0);
            }
            Device::AcknowledgesFlushes | Device::DropsFua => bench.run(0, write(file, 1), value),
            Device::Fua => bench.run(0, fua(file, 1), value),
            Device::FlushesBeside => {
                let write = bench.submit(0, write(file, 1), value).unwrap();
                let flush = bench.submit(1, Op::Flush, 0).unwrap();
                for (handle, tag) in [(0, write), (1, flush)] {
                    bench.end(handle, tag, Ok(()));
                    bench.poll(handle).unwrap();
                }
            }
        }
        bench.mark(&format!("ack fsync f{file}"));
    }
    let log = open(&bench);
    let base = Some(bench.base());
    let options = Options { seed: 1, positions, states_per_position, base, ..Options::default() };
    let (mut states, mut lost) = (0, 0);
    for state in CrashStates::open(&log, &options).unwrap() {
        states += 1;
        for mark in state.marks() {
            let file: u64 = mark.text.strip_prefix("ack fsync f").unwrap().parse().unwrap();
            let mut sector = [0; 512];
            state.image.read(file, &mut sector).unwrap();
            lost += usize::from(sector != [file as u8 + 1; 512]);
        }
    }
    (states, lost)
}

#[test]
fn an_honest_device_loses_nothing_and_each_lie_is_found() {
    use Device::{AcknowledgesFlushes, DropsFua, Flushes, FlushesBeside, Fua};
    for (positions, most) in [(Positions::Every, 8), (Positions::Marks, 4), (Positions::Sample(8), 4)] {
        for device in [Flushes, Fua] {
            let (states, lost) = run(device, positions, most);
            assert!(states >= 8, "{device:?} {positions:?}: {states} states");
            assert_eq!(lost, 0, "{device:?} {positions:?}");
        }
        for device in [AcknowledgesFlushes, DropsFua, FlushesBeside] {
            let (_, lost) = run(device, positions, most);
            assert!(lost > 0, "{device:?} {positions:?}");
        }
    }
}
