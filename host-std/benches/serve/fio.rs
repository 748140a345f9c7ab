//! fio as the client, with its engine libblkio.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::rows::{Operation, Row, Sample};
use crate::servers::{IMAGE_BYTES, Running};

/// Runs a row for a while.
pub(crate) fn run(fio: &Path, server: &Running, row: Row, time: Duration) -> anyhow::Result<Sample> {
    let busy = server.processor_time()?;
    let mut command = Command::new(fio);
    command.args([
        "--name=row",
        "--ioengine=libblkio",
        "--libblkio_driver=virtio-blk-vhost-user",
        "--thread=1",
    ]);
    command.arg(format!("--libblkio_path={}", server.socket().display()));
    command.arg(format!("--size={IMAGE_BYTES}")).arg(format!("--bs={}", row.bytes));
    command.arg(format!("--iodepth={}", row.depth)).arg(format!("--runtime={}ms", time.as_millis()));
    command.args(["--time_based=1", "--norandommap=1", "--randrepeat=1", "--output-format=json"]);
    command.args(match row.operation {
        Operation::Read => &["--rw=randread"][..],
        Operation::Write => &["--rw=randwrite"],
        Operation::WriteFlush => &["--rw=randwrite", "--fsync=1"],
    });
    let output = command.output().with_context(|| format!("cannot run {}", fio.display()))?;
    if !output.status.success() {
        bail!(
            "fio failed: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let busy = server.processor_time()? - busy;
    let report = String::from_utf8_lossy(&output.stdout);
    // Notes may precede the report.
    let report = report.find('{').and_then(|at| report.get(at..)).unwrap_or_default();
    let report: Value = serde_json::from_str(report).context("fio's report is not JSON")?;
    let side = if row.operation == Operation::Read { "read" } else { "write" };
    let side = &report["jobs"][0][side];
    let (Some(per_second), Some(done)) = (side["iops"].as_f64(), side["total_ios"].as_f64()) else {
        bail!("fio's report has no iops");
    };
    Ok(Sample { per_second, server_us: busy.as_secs_f64() * 1e6 / done, ..Sample::default() })
}
