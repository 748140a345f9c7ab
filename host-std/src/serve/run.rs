//! From start to stop.

use std::os::unix::net::UnixListener;
use std::process;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::attach;
use super::config::{Config, ConfigError};
use super::control::Control;
use super::device::Device;
use super::error_policy::Failure;
use super::events::{Bus, Event};
use super::listen::{self, Inherited, Socket, SocketFile};
use crate::server::ServeError;

/// Stopped by a second signal, as shells report it for SIGINT.
const EXIT_AT_ONCE: i32 = 130;
/// Failures of a device that are logged each second; the rest is counted.
const FAILURES_PER_SECOND: u32 = 10;

/// What the main thread waits for.
enum Happened {
    Signal,
    Ended { device: String, result: Result<(), ServeError> },
}

/// Serves until a signal, or until every device is over. Returns whether every device ended well: what the guests were
/// told is stable then.
///
/// `place` is where the configuration came from, for errors; `announce` prints the lines that attach a guest.
///
/// # Errors
/// What the operator can remedy, before anything is served.
pub fn run(config: &Config, place: &str, mut inherited: Inherited, announce: bool) -> anyhow::Result<bool> {
    config.check(place)?;
    // First, so that no signal comes in between.
    let (happened, events) = channel();
    let signals = Signals::new([SIGINT, SIGTERM]).context("cannot install the signal handlers")?;
    let sockets = Sockets::open(config, &mut inherited)?;
    let bus = Arc::new(Bus::default());
    let mut devices = Vec::new();
    open_all(config, &bus, &mut devices)
        .inspect_err(|_| devices.iter().for_each(|device| device.refuse()))?;
    on_signal(signals, happened.clone())?;
    let Sockets { devices: sockets, control, files: _files } = sockets;
    if let Some(listener) = control {
        let control = Control { devices: devices.clone(), bus: Arc::clone(&bus), since: Instant::now() };
        let control = Arc::new(control);
        spawn("control", move || control.listen(&listener))?;
    }
    for (device, socket) in devices.iter().zip(sockets) {
        if announce && let Some(path) = socket.path() {
            print!("{}", attach::lines(&device.name, &device.config, &path));
        }
        serve(Arc::clone(device), socket, happened.clone())?;
    }
    drop(happened);
    tracing::info!(devices = devices.len(), "ready");
    // Not started by a service manager, most likely.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    Ok(wait(&devices, &events, &bus))
}

fn open_all(config: &Config, bus: &Arc<Bus>, devices: &mut Vec<Arc<Device>>) -> anyhow::Result<()> {
    for (index, device) in config.devices.iter().enumerate() {
        let (device, failures) = Device::open(device.name(index), device.clone(), Arc::clone(bus))?;
        let device = Arc::new(device);
        devices.push(Arc::clone(&device));
        watch(device, failures)?;
    }
    Ok(())
}

/// Waits for the end of all devices.
fn wait(devices: &[Arc<Device>], events: &Receiver<Happened>, bus: &Bus) -> bool {
    let (mut left, mut well, mut stopping) = (devices.len(), true, false);
    while left != 0 {
        match events.recv() {
            Ok(Happened::Signal) if stopping => {
                tracing::warn!(
                    "stopped at once by a second signal: requests in flight are lost to the guest"
                );
                process::exit(EXIT_AT_ONCE);
            }
            Ok(Happened::Signal) => {
                stopping = true;
                tracing::info!("stopping: requests in flight complete, images are flushed");
                let _ = sd_notify::notify(&[NotifyState::Stopping]);
                bus.publish(&Event::Stopping);
                devices.iter().for_each(|device| device.stop());
            }
            Ok(Happened::Ended { device, result }) => {
                left -= 1;
                match result {
                    Ok(()) => {
                        let ended = devices.iter().filter(|ended| ended.name == device);
                        ended.for_each(|device| device.end_recordings());
                        tracing::info!(device, "ended");
                    }
                    Err(error) => {
                        tracing::error!(device, %error, "ended");
                        well = false;
                    }
                }
            }
            // Every thread is gone, which they are not while devices are left.
            Err(_) => return false,
        }
    }
    well
}

/// The sockets of all devices and of the operator.
struct Sockets {
    devices: Vec<Socket>,
    control: Option<UnixListener>,
    files: Vec<SocketFile>,
}

impl Sockets {
    fn open(config: &Config, inherited: &mut Inherited) -> anyhow::Result<Self> {
        let mut handed_over =
            sd_notify::listen_fds().context("the service manager's sockets (LISTEN_FDS)")?;
        let (mut devices, mut files) = (Vec::new(), Vec::new());
        for device in &config.devices {
            devices.push(match (device.fd, &device.socket) {
                (Some(fd), _) => inherited.take(fd, "fd")?,
                (None, Some(path)) => {
                    let (listener, file) = listen::bind(path, "socket")?;
                    files.push(file);
                    Socket::Listening(listener)
                }
                (None, None) => {
                    let remedy = "give --socket PATH, --vfio-user PATH or --fd N (in a file: socket or fd)";
                    let none = || ConfigError::new("socket", "not given", remedy);
                    inherited.take(handed_over.next().ok_or_else(none)?, "LISTEN_FDS")?
                }
            });
        }
        let mut control = None;
        if let Some(path) = &config.control {
            // Whoever can connect is an operator. No other thread makes files yet.
            let mask = rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
            let bound = listen::bind(path, "control");
            rustix::process::umask(mask);
            let (listener, file) = bound?;
            control = Some(listener);
            files.push(file);
        }
        Ok(Self { devices, control, files })
    }
}

/// Serves a device on a thread of its own.
fn serve(device: Arc<Device>, socket: Socket, happened: Sender<Happened>) -> anyhow::Result<()> {
    let name = device.name.clone();
    spawn(&format!("serve-{name}"), move || {
        let result = match socket {
            Socket::Connected(stream) => device.server.serve_stream(stream),
            Socket::Listening(listener) if device.config.once => match device.server.accept(&listener) {
                Some(stream) => device.server.serve_stream(stream),
                None => Ok(()),
            },
            Socket::Listening(listener) => device.server.serve(&listener),
        };
        // Nobody listens if the process ends.
        let _ = happened.send(Happened::Ended { device: name, result });
    })
}

/// Logs what the host fails, and has the device paused where that is its policy.
fn watch(device: Arc<Device>, failures: Receiver<Failure>) -> anyhow::Result<()> {
    spawn(&format!("watch-{}", device.name.clone()), move || {
        let (mut since, mut seen) = (Instant::now(), 0_u32);
        for failure in failures {
            if since.elapsed() >= Duration::from_secs(1) {
                if let Some(more @ 1..) = seen.checked_sub(FAILURES_PER_SECOND) {
                    tracing::warn!(device = device.name, more, "failures that were not logged");
                }
                (since, seen) = (Instant::now(), 0);
            }
            seen = seen.saturating_add(1);
            if seen <= FAILURES_PER_SECOND {
                tracing::warn!(device = device.name, held = failure.held, %failure, "the host failed a request");
            }
            device.failed(failure);
        }
    })
}

fn on_signal(mut signals: Signals, happened: Sender<Happened>) -> anyhow::Result<()> {
    spawn("signals", move || {
        for _ in signals.forever() {
            if happened.send(Happened::Signal).is_err() {
                return;
            }
        }
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    // The kernel keeps 15 bytes of it.
    thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .context("cannot start a thread; raise the limit on processes")?;
    Ok(())
}
