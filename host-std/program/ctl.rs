//! `blk-host ctl`: asks a server, and prints its answers for people or for programs.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

use host_std::serve::control::{Client, Reply, Report, Request};
use host_std::serve::meter::KindStats;
use host_std::serve::throttle::{LimitChange, ThrottleStats};
use host_std::serve::{DeviceStats, Event, ImageReport, State};

use crate::cli::{CtlArgs, CtlCommand, SizeArg};
use crate::exit::EXIT_UNSAFE;
use crate::metrics::encode::{self, Scraped};
use crate::output::{self, Failure, outln};

pub(crate) fn run(args: &CtlArgs) -> anyhow::Result<ExitCode> {
    let request = request(args)?;
    let path = args.control.display();
    let mut client = Client::connect(&args.control).map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::NotFound => {
                format!("start the server with serve --control {path}, or give the path that it has")
            }
            ErrorKind::PermissionDenied => "become the user that started the server".into(),
            _ => "give the path that serve --control was given, of a server that runs".into(),
        };
        anyhow!("--control {path}: cannot connect: {error}; {remedy}")
    })?;
    let waiting = |what: &str| output::complain(format_args!("{what}"));
    let answer = client.ask_patiently(&request, waiting).map_err(|error| {
        let remedy = "check that it is the control socket of a server that runs: serve --control";
        anyhow!("--control {path}: no answer: {error}; {remedy}")
    })?;
    let value = match answer {
        Reply::Ok(value) => value,
        Reply::Error(refusal) | Reply::Waiting(refusal) => {
            output::complain(format_args!("{refusal}"));
            return Ok(ExitCode::from(EXIT_UNSAFE));
        }
    };
    if request == (Request::Events {}) {
        while let Some(line) = client.line()? {
            print_event(&line, args.json)?;
        }
    } else if matches!(args.command, CtlCommand::Metrics) {
        let report = serde_json::from_value(value).context("the server's answer is not understood")?;
        let scraped = Scraped { control: args.control.display().to_string(), report: Some(report) };
        output::text_of(format_args!("{}", encode::text(vec![scraped])?))?;
    } else {
        print_answer(&request, value, args.json)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn request(args: &CtlArgs) -> anyhow::Result<Request> {
    let device = args.device.clone();
    Ok(match &args.command {
        CtlCommand::Stats | CtlCommand::Metrics => Request::Stats { device },
        CtlCommand::Pause => Request::Pause { device },
        CtlCommand::Resume => Request::Resume { device },
        CtlCommand::Drain => Request::Drain { device },
        CtlCommand::Resize { image, size } => {
            let (bytes, grow) = match *size {
                Some(SizeArg::To(bytes)) => (Some(bytes), None),
                Some(SizeArg::By(bytes)) => (None, Some(bytes)),
                None => (None, None),
            };
            Request::Resize { device, image: *image, bytes, grow }
        }
        CtlCommand::Throttle { image, limits } => {
            let mut change = LimitChange::default();
            limits
                .iter()
                .try_for_each(|limit| change.set(limit))
                .map_err(|error| anyhow!("throttle {error}"))?;
            Request::Throttle { device, image: *image, limits: change }
        }
        CtlCommand::Mark { text } => Request::Mark { device, text: text.clone() },
        CtlCommand::Hotplug { image } => Request::Hotplug { device, image: image.clone() },
        CtlCommand::Unplug { lun } => {
            let lun =
                lun.parse().map_err(|remedy| anyhow!("unplug {lun}: no address of a unit; {remedy}"))?;
            Request::Unplug { device, lun }
        }
        CtlCommand::Disconnect => Request::Disconnect { device },
        CtlCommand::Events => Request::Events {},
    })
}

fn print_event(line: &str, json: bool) -> anyhow::Result<()> {
    if json {
        outln!("{line}")?;
        return Ok(());
    }
    let event: Event = serde_json::from_str(line)
        .context("the server sent what is no event; use its version of blk-host")?;
    match event {
        Event::Failed { device, failure } => {
            let outcome = if failure.held { "held" } else { "reported to the guest" };
            outln!("{device}: {failure}: {outcome}")?;
        }
        Event::Paused { device, reason } => outln!("{device}: paused: {reason}")?,
        Event::Resumed { device } => outln!("{device}: resumed")?,
        Event::Resized { device, image, bytes } => outln!("{device}: {image} has {bytes} bytes now")?,
        Event::Plugged { device, lun } => outln!("{device}: lun {lun} plugged")?,
        Event::Unplugged { device, lun } => outln!("{device}: lun {lun} unplugged")?,
        Event::Stopping => outln!("the server stops")?,
        Event::Missed { events } => outln!("{events} events were missed")?,
    }
    Ok(())
}

fn print_answer(request: &Request, value: Value, json: bool) -> anyhow::Result<()> {
    if json {
        outln!("{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    match request {
        Request::Stats { .. } => {
            let report: Report = serde_json::from_value(value)
                .context("the server's answer is not understood; use its version of blk-host")?;
            outln!("blk-host {}, up {} s", report.version, report.uptime_seconds)?;
            outln!("{}", report.sandbox)?;
            if report.log_lines_lost != 0 {
                outln!("LOG: {} lines are lost; standard error did not take them", report.log_lines_lost)?;
            }
            report.devices.iter().try_for_each(print_device)?;
        }
        Request::Resume { .. } => outln!("resumed; tried again: {}", value["retried"])?,
        Request::Resize { .. } => outln!("{} bytes", value["bytes"])?,
        Request::Throttle { .. } => {
            let stats = serde_json::from_value(value)
                .context("the server's answer is not understood; use its version of blk-host")?;
            print_limits(&stats)?;
        }
        Request::Mark { .. } => outln!("position {}", value["position"])?,
        Request::Hotplug { .. } => outln!("lun {}", value["lun"].as_str().unwrap_or_default())?,
        _ => outln!("done")?,
    }
    Ok(())
}

fn print_device(device: &DeviceStats) -> Result<(), Failure> {
    let client = if device.server.connected { "client connected" } else { "no client" };
    outln!("\n{} ({}): {client}, {} so far", device.name, device.kind.name(), device.server.clients)?;
    if let State::Paused { reason } = &device.state {
        outln!("PAUSED: {reason}; {} requests are held", device.held)?;
    }
    let mut table = new_table(&[
        "queue",
        "reads",
        "read",
        "writes",
        "written",
        "flushes",
        "ranges",
        "others",
        "errors",
        "in flight",
        "kicks",
        "interrupts",
    ]);
    for (index, queue) in device.server.queues.iter().enumerate() {
        row(
            &mut table,
            &index.to_string(),
            &[
                queue.reads.to_string(),
                bytes(queue.read_bytes),
                queue.writes.to_string(),
                bytes(queue.written_bytes),
                queue.flushes.to_string(),
                queue.ranges.to_string(),
                queue.others.to_string(),
                queue.errors.to_string(),
                queue.in_flight.to_string(),
                queue.kicks.to_string(),
                queue.notifications.to_string(),
            ],
        );
    }
    outln!("{table}")?;
    device.images.iter().try_for_each(print_image)
}

fn print_image(image: &ImageReport) -> Result<(), Failure> {
    let lun = image.lun.map_or(String::new(), |lun| format!(" lun {lun},"));
    outln!("{}:{lun} {}, cache={}", image.path.display(), bytes(image.bytes), image.cache)?;
    if let Some(cause) = &image.latched {
        outln!("FAILED: flushes and writes fail since {cause}; check the image, then restart the server")?;
    }
    let mut table = new_table(&["operation", "done", "bytes", "errors", "mean", "50 %", "99 %", "100 %"]);
    let operations = &image.operations;
    let kinds = [
        ("read", &operations.read),
        ("write", &operations.write),
        ("flush", &operations.flush),
        ("zero, discard", &operations.range),
    ];
    for (name, kind) in kinds {
        let percentile = |percent| kind.latency.percentile_ns(percent).map_or("-".into(), time);
        row(
            &mut table,
            name,
            &[
                kind.operations.to_string(),
                bytes(kind.bytes),
                kind.errors.to_string(),
                mean(kind),
                percentile(50),
                percentile(99),
                percentile(100),
            ],
        );
    }
    outln!("{table}")?;
    image.throttle.iter().try_for_each(print_limits)?;
    print_budgets(image)?;
    let host = &image.host;
    outln!(
        "host: {} fdatasync, {} O_DSYNC and {} RWF_DSYNC writes; tried again after errors: {}",
        host.fdatasync_calls,
        host.dsync_writes,
        host.fua_writes,
        operations.retries
    )
}

fn print_budgets(image: &ImageReport) -> Result<(), Failure> {
    let budgets = &image.budgets;
    let mut table = new_table(&["budget", "used", "peak", "limit"]);
    let of_all = [("bytes in flight", budgets.bytes_in_flight), ("private memory", budgets.private_memory)];
    let of_recording = image.recording_memory.map(|memory| ("memory of the recording", memory));
    for (name, of) in of_all.into_iter().chain(of_recording) {
        row(&mut table, name, &[bytes(of.used), bytes(of.peak), bytes(of.limit)]);
    }
    outln!("{table}")?;
    outln!("budgets: {} requests wait, {} have had to", budgets.waiting, budgets.delayed)
}

fn print_limits(stats: &ThrottleStats) -> Result<(), Failure> {
    let limit = |rate: Option<u64>, burst: Option<u64>, text: fn(u64) -> String| match (rate, burst) {
        (Some(rate), Some(burst)) => format!("{} a second, {} at once", text(rate), text(burst)),
        _ => "no limit".into(),
    };
    outln!("limits: operations: {}", limit(stats.iops, stats.iops_burst, |n| n.to_string()))?;
    outln!("limits: bytes: {}", limit(stats.bps, stats.bps_burst, bytes))?;
    let mean = stats.delayed_ns.checked_div(stats.delayed).map_or("-".into(), time);
    outln!("limits: {} requests wait, {} have waited, {mean} on average", stats.held, stats.delayed)
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table
}

fn row(table: &mut Table, name: &str, cells: &[String]) {
    let right = |text: &String| Cell::new(text).set_alignment(CellAlignment::Right);
    table.add_row(std::iter::once(Cell::new(name)).chain(cells.iter().map(right)));
}

fn mean(kind: &KindStats) -> String {
    kind.total_ns.checked_div(kind.latency.count()).map_or("-".into(), time)
}

fn time(ns: u64) -> String {
    format!("{:.1?}", Duration::from_nanos(ns))
}

fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
