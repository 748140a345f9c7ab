//! From start to stop.

use std::io;
use std::os::unix::net::UnixListener;
use std::process;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::attach::{self, Attachment};
use super::config::{Config, ConfigError};
use super::confined::{self, Confined};
use super::control::Control;
use super::device::{Device, IdleDevice};
use super::error_policy::Failure;
use super::events::{Bus, Event};
use super::listen::{self, Inherited, Socket, SocketFile};
use super::log;
use super::open::Stopped;
use super::same_file;
use super::signals::Signals;
use crate::confine::permissions::SocketAccess;
use crate::confine::{self, Role, ServiceManager, limits};
use crate::server::{ServeError, Server};

/// Stopped by a second signal, as shells report it for SIGINT.
const EXIT_AT_ONCE: i32 = 130;
/// Two signals within this time are one: timeout(1) sends one to the process, and one to its group.
const ONE_STOP: Duration = Duration::from_millis(500);
/// How often the end says what it waits for.
const TELL_EVERY: Duration = Duration::from_secs(3);
/// How long the lines that attach a guest may wait for a reader.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the main thread waits for.
enum Happened {
    Signal(&'static str),
    Ended { device: String, result: Result<(), ServeError> },
}

/// Serves until a signal, or until every device is over. Returns whether every device ended well: what the guests were
/// told is stable then.
///
/// `place` is where the configuration came from, for errors; `announce` prints the lines that attach a guest.
///
/// # Errors
/// What the operator can remedy, before anything is served.
pub fn run(config: &Config, place: &str, inherited: Inherited, announce: bool) -> anyhow::Result<bool> {
    config.check(place)?;
    same_file::check(config, place)?;
    Confined::check(config)?;
    // First, so that no signal comes in between, and no thread is there that does not block them.
    let signals = Signals::block().context("cannot block signals, to read them")?;
    limits::ignore_file_size_signal().context("cannot ignore the signal SIGXFSZ")?;
    match limits::raise_descriptors() {
        Ok(descriptors) => tracing::debug!("{descriptors}"),
        Err(error) => tracing::warn!("cannot raise the limit on open files: {error}; see ulimit -n"),
    }
    match start(config, inherited, announce, signals) {
        Err(error) if error.is::<Stopped>() => {
            tracing::info!("{error}: nothing was served");
            Ok(true)
        }
        result => result,
    }
}

/// Opens all, serves it, and waits for the end.
fn start(
    config: &Config,
    mut inherited: Inherited,
    announce: bool,
    signals: Signals,
) -> anyhow::Result<bool> {
    let sockets = Sockets::open(config, &mut inherited)?;
    let manager = ServiceManager::connect().context("cannot reach the service manager (NOTIFY_SOCKET)")?;
    let bus = Arc::new(Bus::default());
    let mut idle = Vec::new();
    let opened = open_all(config, &bus, &mut idle);
    let devices: Vec<_> = idle.iter().map(|idle| Arc::clone(&idle.device)).collect();
    let mut refused = devices.clone();
    let serving = opened
        .and_then(|()| serve_all(config, idle, sockets, &bus, signals, announce, &mut refused))
        .inspect_err(|_| refused.iter().for_each(|device| device.refuse()))?;
    tracing::info!(devices = devices.len(), "ready");
    tell(manager.as_ref(), "READY=1");
    confine::thread(Role::Main);
    Ok(wait(&devices, &serving.events, &bus, manager.as_ref()))
}

fn open_all(config: &Config, bus: &Arc<Bus>, idle: &mut Vec<IdleDevice>) -> anyhow::Result<()> {
    for (index, device) in config.devices.iter().enumerate() {
        idle.push(IdleDevice::open(device.name(index), device.clone(), Arc::clone(bus))?);
    }
    Ok(())
}

/// What is kept until the end.
struct Serving {
    events: Receiver<Happened>,
    _servers: Vec<Arc<Server>>,
    _files: Vec<SocketFile>,
}

/// Confines the process, and starts its threads. A device that is served is no longer among the `refused`.
fn serve_all(
    config: &Config,
    idle: Vec<IdleDevice>,
    sockets: Sockets,
    bus: &Arc<Bus>,
    signals: Signals,
    announce: bool,
    refused: &mut Vec<Arc<Device>>,
) -> anyhow::Result<Serving> {
    // All is open, and no thread has been started: those that are started from here on are confined, too.
    let confined = Confined::enter(config)?;
    log::start_thread();
    let (happened, events) = channel();
    let devices: Vec<_> = idle.iter().map(|idle| Arc::clone(&idle.device)).collect();
    let mut servers = Vec::new();
    for (device, idle) in devices.iter().zip(idle) {
        let (server, failures) = idle.start()?;
        watch(Arc::clone(device), failures)?;
        servers.push(Arc::new(server));
    }
    on_signal(signals, happened.clone())?;
    let Sockets { devices: sockets, control, files } = sockets;
    if let Some(listener) = control {
        let control =
            Control { devices: devices.clone(), bus: Arc::clone(bus), since: Instant::now(), confined };
        let control = Arc::new(control);
        spawn("control", Role::Control, move || control.listen(&listener))?;
    }
    if announce {
        print_attach_lines(&devices, &sockets);
    }
    for ((device, server), socket) in devices.iter().zip(&servers).zip(sockets) {
        serve(Arc::clone(device), Arc::clone(server), socket, happened.clone())?;
        refused.retain(|refused| !Arc::ptr_eq(refused, device));
    }
    Ok(Serving { events, _servers: servers, _files: files })
}

fn print_attach_lines(devices: &[Arc<Device>], sockets: &[Socket]) {
    let on_paths = devices.iter().zip(sockets).filter_map(|(device, socket)| Some((device, socket.path()?)));
    let all: Vec<_> =
        on_paths.map(|(device, path)| Attachment::new(&device.name, &device.config, &path)).collect();
    let lines = attach::lines(&all);
    if let Err(error) = log::write_within(io::stdout(), lines.as_bytes(), Some(ANNOUNCE_TIMEOUT)) {
        tracing::warn!("standard output: cannot print the lines that attach a guest: {error}; give --quiet");
    }
}

/// Waits for the end of all devices.
fn wait(
    devices: &[Arc<Device>],
    events: &Receiver<Happened>,
    bus: &Bus,
    manager: Option<&ServiceManager>,
) -> bool {
    let (mut left, mut well, mut stopping) = (devices.iter().collect::<Vec<_>>(), true, None::<Instant>);
    while !left.is_empty() {
        let happened = match stopping {
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => events.recv_timeout(TELL_EVERY),
        };
        match happened {
            Ok(Happened::Signal(_)) if stopping.is_some_and(|since| since.elapsed() < ONE_STOP) => {}
            Ok(Happened::Signal(_)) if stopping.is_some() => {
                tracing::warn!(
                    "stopped at once by a second signal: requests in flight are lost to the guest"
                );
                log::flush();
                process::exit(EXIT_AT_ONCE);
            }
            Ok(Happened::Signal(signal)) => {
                stopping = Some(Instant::now());
                tracing::info!(signal, "stopping: requests in flight complete, images are flushed");
                tell(manager, "STOPPING=1");
                bus.publish(&Event::Stopping);
                devices.iter().for_each(|device| device.stop());
            }
            Ok(Happened::Ended { device, result }) => {
                left.retain(|left| left.name != device);
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
            Err(RecvTimeoutError::Timeout) => {
                for device in &left {
                    let _in_span = device.span.enter();
                    tracing::info!("the end {}", device.waits_for());
                }
            }
            // Every thread is gone, which they are not while devices are left.
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    well
}

fn tell(manager: Option<&ServiceManager>, state: &str) {
    if let Some(Err(error)) = manager.map(|manager| manager.tell(state)) {
        tracing::warn!(%error, "the service manager was not told {state}");
    }
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
        let access = confined::socket_access(config)?;
        let (mut devices, mut files) = (Vec::new(), Vec::new());
        for device in &config.devices {
            devices.push(match (device.fd, &device.socket) {
                (Some(fd), _) => inherited.take(fd, "fd")?,
                (None, Some(path)) => {
                    let (listener, file) = listen::bind(path, &access, "socket")?;
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
            // Whoever can connect is an operator.
            let (listener, file) = listen::bind(path, &SocketAccess::default(), "control")?;
            control = Some(listener);
            files.push(file);
        }
        Ok(Self { devices, control, files })
    }
}

/// Serves a device on a thread of its own.
fn serve(
    device: Arc<Device>,
    server: Arc<Server>,
    socket: Socket,
    happened: Sender<Happened>,
) -> anyhow::Result<()> {
    let name = device.name.clone();
    spawn(&format!("serve-{name}"), Role::Serve, move || {
        let _in_span = device.span.enter();
        let result = match socket {
            Socket::Connected(stream) => server.serve_stream(stream),
            Socket::Listening(listener) if device.config.once => match server.accept(&listener) {
                Some(stream) => server.serve_stream(stream),
                None => Ok(()),
            },
            Socket::Listening(listener) => server.serve(&listener),
        };
        // Nobody listens if the process ends.
        let _ = happened.send(Happened::Ended { device: name, result });
    })
}

/// Logs what the host fails, and has the device paused where that is its policy.
fn watch(device: Arc<Device>, failures: Receiver<Failure>) -> anyhow::Result<()> {
    spawn(&format!("watch-{}", device.name.clone()), Role::Watch, move || {
        let _in_span = device.span.enter();
        for failure in failures {
            tracing::warn!(held = failure.held, %failure, "the host failed a request");
            device.failed(failure);
        }
    })
}

fn on_signal(signals: Signals, happened: Sender<Happened>) -> anyhow::Result<()> {
    spawn("signals", Role::Main, move || while happened.send(Happened::Signal(signals.wait())).is_ok() {})
}

fn spawn(name: &str, role: Role, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    // The kernel keeps 15 bytes of it.
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            confine::thread(role);
            body();
        })
        .context("cannot start a thread; raise the limit on processes")?;
    Ok(())
}
