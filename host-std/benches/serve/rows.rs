//! The rows of the table, and how our own client runs them.

use std::time::{Duration, Instant};

use anyhow::ensure;
use host_std::testing::client::{Blk, ClientError, Options, Payload, Request};

use crate::servers::{IMAGE_BYTES, Running};

/// What is done over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    /// A write, and when that has completed a flush.
    WriteFlush,
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) operation: Operation,
    pub(crate) bytes: u32,
    pub(crate) depth: usize,
}

/// One run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Operations in a second; of pairs, pairs.
    pub(crate) per_second: f64,
    /// Microseconds of processor time that the server took for one.
    pub(crate) server_us: f64,
    /// Eventfds that the client wrote, and waits of its that ended, for one.
    pub(crate) kicks: f64,
    pub(crate) wakes: f64,
}

impl Row {
    pub(crate) fn name(self) -> String {
        let size = self.bytes >> 10;
        match self.operation {
            Operation::Read => format!("{size} KiB read, depth {}", self.depth),
            Operation::Write => format!("{size} KiB write, depth {}", self.depth),
            Operation::WriteFlush => format!("{size} KiB write + flush, depth {}", self.depth),
        }
    }
}

/// The rows of one place.
pub(crate) fn all(direct: bool) -> impl Iterator<Item = Row> {
    use Operation::{Read, Write, WriteFlush};
    let depths = [1, 32];
    let small =
        [Read, Write].into_iter().flat_map(move |operation| depths.map(|depth| (operation, 4 << 10, depth)));
    let pairs = [(WriteFlush, 4 << 10, 1)];
    let large = [(Read, 128 << 10, 1), (Read, 128 << 10, 8), (Write, 128 << 10, 1), (Write, 128 << 10, 8)];
    let large = large.into_iter().filter(move |&(_, _, depth)| !direct || depth == 8);
    small.chain(pairs).chain(large).map(|(operation, bytes, depth)| Row { operation, bytes, depth })
}

/// Runs a row for a while.
pub(crate) fn run(server: &Running, row: Row, time: Duration) -> anyhow::Result<Sample> {
    let options = Options { transfer_bytes: row.bytes, segment_bytes: row.bytes, ..Options::default() };
    let mut disk = Blk::connect(server.socket(), options)?;
    ensure!(disk.sectors() * 512 == IMAGE_BYTES, "the server does not show the whole image");
    let busy = server.processor_time()?;
    let begun = Instant::now();
    let done = match row.operation {
        Operation::WriteFlush => pairs(&mut disk, row, begun + time)?,
        _ => stream(&mut disk, row, begun + time)?,
    };
    let took = begun.elapsed();
    let busy = server.processor_time()? - busy;
    let counts = disk.session().counts(0);
    let each = |count: u64| count as f64 / done as f64;
    Ok(Sample {
        per_second: done as f64 / took.as_secs_f64(),
        server_us: busy.as_secs_f64() * 1e6 / done as f64,
        kicks: each(counts.kicks),
        wakes: each(counts.wakes),
    })
}

/// Where the next request goes: anywhere.
fn anywhere(random: &mut fastrand::Rng, bytes: u32) -> u64 {
    random.u64(..IMAGE_BYTES / u64::from(bytes)) * u64::from(bytes) / 512
}

fn request(random: &mut fastrand::Rng, row: Row) -> Request<'static> {
    let sector = anywhere(random, row.bytes);
    match row.operation {
        Operation::Read => Request::Read { sector, bytes: row.bytes },
        _ => Request::Write { sector, data: Payload::Whatever(row.bytes) },
    }
}

/// Keeps `row.depth` requests under way. Returns how many completed.
fn stream(disk: &mut Blk, row: Row, until: Instant) -> anyhow::Result<u64> {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..row.depth {
        disk.submit(0, request(&mut random, row))?;
    }
    let mut done = 0_u64;
    while Instant::now() < until {
        // The clock is looked at now and then only.
        for _ in 0..16 {
            let mut completed = Some(disk.wait(0)?);
            while let Some(one) = completed {
                ensure!(one.is_ok(), "a request failed");
                done += 1;
                disk.submit(0, request(&mut random, row))?;
                completed = disk.poll(0)?;
            }
        }
    }
    drain(disk)?;
    Ok(done)
}

fn pairs(disk: &mut Blk, row: Row, until: Instant) -> anyhow::Result<u64> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut done = 0;
    while Instant::now() < until {
        for request in [request(&mut random, row), Request::Flush] {
            disk.submit(0, request)?;
            ensure!(disk.wait(0)?.is_ok(), "a request failed");
        }
        done += 1;
    }
    Ok(done)
}

fn drain(disk: &mut Blk) -> Result<(), ClientError> {
    while disk.session().in_flight(0) != 0 {
        disk.wait(0)?;
    }
    Ok(())
}
