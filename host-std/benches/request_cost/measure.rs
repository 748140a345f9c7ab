//! The two ways to measure a row: instructions and time.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use blk_core::storage::Storage;
use host_std::memory::MappedMemory;

use crate::case::How;
use crate::front::Front;

/// Requests that callgrind counts at least, after a tenth of them that it does not.
const COUNTED: u32 = 512;
const BATCHES: usize = 41;
const BATCH_TIME: Duration = Duration::from_millis(1);

/// Serves requests under callgrind.
pub(crate) struct Count;

impl How<()> for Count {
    fn run<S: Storage<MappedMemory>, F: Front<S>>(
        self,
        mut front: F,
        memory: &MappedMemory,
        storage: &mut [S],
    ) {
        for _ in 0..COUNTED / 10 {
            front.prepare(memory);
            front.serve(memory, storage);
        }
        for _ in 0..COUNTED / F::REQUESTS {
            front.prepare(memory);
            counted(&mut front, memory, storage);
        }
        front.check(memory);
    }
}

/// What callgrind counts, by this name.
#[inline(never)]
fn counted<S: Storage<MappedMemory>, F: Front<S>>(front: &mut F, memory: &MappedMemory, storage: &mut [S]) {
    front.serve(memory, storage);
}

/// Takes the time: nanoseconds for one request, the median of batches.
pub(crate) struct Time;

impl How<f64> for Time {
    fn run<S: Storage<MappedMemory>, F: Front<S>>(
        self,
        mut front: F,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> f64 {
        let mut batch = |rounds: u32| {
            let begun = Instant::now();
            for _ in 0..rounds {
                front.prepare(memory);
                front.serve(memory, storage);
            }
            begun.elapsed()
        };
        let mut rounds = 1;
        while batch(rounds) < BATCH_TIME {
            rounds *= 2;
        }
        let mut times: Vec<Duration> = (0..BATCHES).map(|_| batch(rounds)).collect();
        times.sort();
        front.check(memory);
        times[BATCHES / 2].as_nanos() as f64 / f64::from(rounds * F::REQUESTS)
    }
}

/// The instructions of one request of each of `rows`, if valgrind is there. What is counted does not depend on what else runs.
pub(crate) fn count_all(rows: &[usize]) -> Vec<Option<u64>> {
    let next = AtomicUsize::new(0);
    let counts = rows.iter().map(|_| Mutex::new(None)).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((row, count)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    rows.get(at).zip(counts.get(at))
                } {
                    *count.lock().expect("nobody panicked") = instructions(*row);
                }
            });
        }
    });
    counts.into_iter().map(|count| count.into_inner().expect("nobody panicked")).collect()
}

/// The instructions of one request of row `index`, if valgrind is there.
fn instructions(index: usize) -> Option<u64> {
    let this = std::env::current_exe().ok()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*measure::counted*")
        .arg(this)
        .args(["--count", &index.to_string()])
        .output()
        .ok()?;
    let report = String::from_utf8_lossy(&output.stderr);
    let collected = report.lines().find_map(|line| line.split_once("Collected : "))?.1;
    let total: u64 = collected.trim().parse().ok()?;
    assert!(output.status.success() && total != 0, "callgrind found nothing to count:\n{report}");
    Some(total / u64::from(COUNTED))
}
