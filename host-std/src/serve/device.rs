//! A device: a server over its images, and the operator's hand on both.

use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ata_model::{DriveConfig, PciIdeChip, PciIdeMode};
use blk_core::units::SECTOR_BYTES;
use serde::{Deserialize, Serialize};
use tracing::Span;

use super::config::{Address, AhciMessages, DeviceConfig, DeviceKind, IdeChip, IdeMode, ImageConfig};
use super::confined;
use super::error_policy::{ErrorPolicy, ErrorPolicyBackend, Failure, HeldRequests};
use super::events::{Bus, Event};
use super::image_check;
use super::meter::{ImageStats, Meters};
use super::open;
use super::throttle::{LimitChange, ThrottleStats};
use crate::backend::{Backend, BudgetReport, BudgetUse, Counts, FileBackend, FileOptions, Handle};
use crate::confine::{self, Role};
use crate::fault::Faulty;
use crate::record::Recorder;
use crate::server::vfio_user::devices;
use crate::server::{BlkOptions, Controller, IdleServer, Lun, ScsiOptions, Server, Stats};
use crate::throttle::{Limiter, Throttled};

/// Failures that wait to be logged.
const FAILURES: usize = 256;

/// Whether a device takes requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// It does.
    Running,
    /// It does not.
    Paused {
        /// Why.
        reason: String,
    },
}

/// What an operator is told of a device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceStats {
    /// Its name.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: DeviceKind,
    /// Whether it takes requests.
    #[serde(flatten)]
    pub state: State,
    /// Requests that the error policy holds.
    pub held: u32,
    /// What the guest asked for.
    pub server: Stats,
    /// What its images did.
    pub images: Vec<ImageReport>,
}

/// What an operator is told of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageReport {
    /// The image.
    pub path: PathBuf,
    /// The cache mode.
    pub cache: String,
    /// Where it is found, behind a virtio-scsi host.
    pub lun: Option<Address>,
    /// Its size.
    pub bytes: u64,
    /// Whether a durable operation has failed, so that flushes and writes fail until the image has been checked.
    pub latched: Option<String>,
    /// The operations that the device made of the guest's requests.
    pub operations: ImageStats,
    /// Its limits of rate, and what they did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<ThrottleStats>,
    /// What its operations use now, and have used at most.
    #[serde(default)]
    pub budgets: BudgetReport,
    /// Memory for the data of writes that are being recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recording_memory: Option<BudgetUse>,
    /// The system calls that the backend made of those.
    pub host: Counts,
}

/// Why an operator's command was not done.
pub(super) type Refusal = String;

/// A device that is served; with an [`IdleServer`], one whose threads have not been started.
pub(super) struct Device<S = Server> {
    pub(super) name: String,
    pub(super) config: DeviceConfig,
    pub(super) server: S,
    /// Named by each line of the log that is about it.
    pub(super) span: Span,
    controller: Controller,
    held_requests: Arc<HeldRequests>,
    /// One pause or resume at a time. It may take long, and so nobody else waits for it.
    pausing: Mutex<()>,
    /// Held for a moment only: `stats` wants it.
    state: Mutex<State>,
    /// One change of the images at a time. As `pausing`.
    plugging: Mutex<()>,
    /// Held for a moment only, as `state`.
    images: Mutex<Vec<Image>>,
    bus: Arc<Bus>,
}

struct Image {
    config: ImageConfig,
    address: Address,
    /// What lies below all layers.
    file: Arc<FileBackend>,
    backend: Arc<dyn Backend>,
    /// For flushes of the operator's. Kept from the start: a user that the process has become may not be permitted to open the
    /// image.
    flusher: Arc<Mutex<Box<dyn Handle>>>,
    meters: Arc<Meters>,
    limiter: Option<Arc<Limiter>>,
    recorder: Option<Arc<Recorder>>,
}

impl Device<IdleServer> {
    /// Opens the images and makes the server; starts no thread. What the host fails is told by the receiver.
    pub(super) fn open(
        name: String,
        config: DeviceConfig,
        bus: Arc<Bus>,
    ) -> anyhow::Result<(Self, Receiver<Failure>)> {
        // Of the highest level: whatever is logged names the device. Threads take the span over.
        let span = tracing::error_span!("device", name);
        let entered = span.clone().entered();
        let (sender, failures): (SyncSender<_>, _) = sync_channel(FAILURES);
        let held_requests = Arc::new(HeldRequests::new(sender));
        let mut images = Vec::new();
        let server = open_all(&config, &held_requests, &mut images)
            .and_then(|()| idle_server(&config, &images))
            .inspect_err(|_| images.iter().for_each(|image| image.file.undo_size()))?;
        let controller = server.controller();
        let (state, images) = (Mutex::new(State::Running), Mutex::new(images));
        drop(entered);
        let (pausing, plugging) = (Mutex::new(()), Mutex::new(()));
        let device = Self {
            name,
            config,
            server,
            span,
            controller,
            held_requests,
            pausing,
            state,
            plugging,
            images,
            bus,
        };
        Ok((device, failures))
    }

    /// It is not to be served after all: images that it made or extended are as they were.
    pub(super) fn refuse(&self) {
        lock(&self.images).iter().for_each(|image| image.file.undo_size());
    }

    /// Starts the threads.
    pub(super) fn start(self) -> anyhow::Result<Device> {
        let Self { name, config, server, span, controller, held_requests, .. } = self;
        let Self { pausing, state, plugging, images, bus, .. } = self;
        let entered = span.enter();
        for image in lock(&images).iter() {
            let path = image.config.path.display();
            let _in_span = tracing::error_span!("image", %path).entered();
            image.file.start(confined::io_thread)?;
        }
        let server = server.start(|| confine::thread(Role::Queue))?;
        drop(entered);
        Ok(Device {
            name,
            config,
            server,
            span,
            controller,
            held_requests,
            pausing,
            state,
            plugging,
            images,
            bus,
        })
    }
}

impl Device {
    /// Handles a failure: the device is paused if a request is held.
    pub(super) fn failed(&self, failure: Failure) {
        let _in_span = self.span.enter();
        let reason = failure.to_string();
        self.bus.publish(&Event::Failed { device: self.name.clone(), failure });
        let _one_at_a_time = lock(&self.pausing);
        if !self.held_requests.wants_pause() {
            return;
        }
        self.controller.pause();
        if self.begin(State::Paused { reason: reason.clone() }) {
            tracing::warn!(reason, "paused; make room, then: blk-host ctl resume");
            self.bus.publish(&Event::Paused { device: self.name.clone(), reason });
        }
    }

    /// Takes no more requests.
    pub(super) fn pause(&self) {
        let _in_span = self.span.enter();
        let _one_at_a_time = lock(&self.pausing);
        self.controller.pause();
        let reason = "an operator's command".to_owned();
        if self.begin(State::Paused { reason: reason.clone() }) {
            tracing::info!("paused");
            self.bus.publish(&Event::Paused { device: self.name.clone(), reason });
        }
    }

    /// Takes over a state. False if the device is running and stays so, or is paused and stays so, for the first reason.
    fn begin(&self, next: State) -> bool {
        let mut state = lock(&self.state);
        let changes = (*state == State::Running) != (next == State::Running);
        if changes {
            *state = next;
        }
        changes
    }

    /// Takes requests again, and tries those again that are held. Returns how many those were.
    pub(super) fn resume(&self) -> u32 {
        let _in_span = self.span.enter();
        let _one_at_a_time = lock(&self.pausing);
        let held = self.held_requests.held();
        // Told first: what fails again is told after it.
        if self.begin(State::Running) {
            tracing::info!(held, "resumed");
            self.bus.publish(&Event::Resumed { device: self.name.clone() });
        }
        self.held_requests.retry();
        // Paused first also where it runs: what wakes the queues is the way from paused to running.
        self.controller.pause();
        self.controller.resume();
        held
    }

    /// Pauses, waits until nothing is in flight, and flushes the images: their files are at rest until a resume.
    pub(super) fn drain(&self) -> Result<(), Refusal> {
        let _in_span = self.span.enter();
        self.pause();
        let held = self.held_requests.held();
        if held != 0 {
            return Err(format!("{held} requests are held after errors; make room and resume, then drain"));
        }
        self.controller.drain();
        let flushers: Vec<_> = lock(&self.images).iter().map(|image| Arc::clone(&image.flusher)).collect();
        for flusher in flushers {
            flush(&mut **lock(&flusher))?;
        }
        Ok(())
    }

    /// Takes over an image's size, or extends it first. Returns the size.
    pub(super) fn resize(&self, image: usize, bytes: Option<u64>) -> Result<u64, Refusal> {
        let _in_span = self.span.enter();
        let (backend, path) = {
            let images = lock(&self.images);
            let count = images.len();
            let image =
                images.get(image).ok_or_else(|| format!("no image {image}: there are {count}, from 0 on"))?;
            (Arc::clone(&image.backend), image.config.path.display().to_string())
        };
        let info = backend.resize(bytes).map_err(|error| error.to_string())?;
        let bytes = info.sectors.saturating_mul(u64::from(SECTOR_BYTES));
        self.controller.resized();
        tracing::info!(image = path, bytes, "resized");
        self.bus.publish(&Event::Resized { device: self.name.clone(), image: path, bytes });
        Ok(bytes)
    }

    /// The size of an image now.
    pub(super) fn bytes(&self, image: usize) -> Option<u64> {
        let images = lock(&self.images);
        Some(images.get(image)?.backend.info().sectors.saturating_mul(u64::from(SECTOR_BYTES)))
    }

    /// Changes the limits of an image. Returns what they are.
    pub(super) fn throttle(&self, image: usize, change: &LimitChange) -> Result<ThrottleStats, Refusal> {
        let _in_span = self.span.enter();
        let images = lock(&self.images);
        let count = images.len();
        let image =
            images.get(image).ok_or_else(|| format!("no image {image}: there are {count}, from 0 on"))?;
        let path = image.config.path.display();
        let limiter = image.limiter.as_ref().ok_or_else(|| {
            format!("{path}: cannot be limited: it was opened without limits; serve it with iops=0, and set them at any time")
        })?;
        let limits = limiter.limits();
        let changed = change.apply(limits).map_err(|error| format!("{path}: {error}"))?;
        if changed != limits {
            limiter.set_limits(changed);
            tracing::info!(image = %path, limits = ?changed, "limits of rate changed");
        }
        Ok(ThrottleStats::of(limiter))
    }

    /// Writes a note into the recordings. Returns the position of the first one.
    pub(super) fn mark(&self, text: &str) -> Result<u64, Refusal> {
        let recorders: Vec<_> =
            lock(&self.images).iter().filter_map(|image| image.recorder.clone()).collect();
        let mut position = Err("nothing is recorded; serve with --record".to_owned());
        for recorder in recorders {
            let at = recorder.mark(text).map_err(|error| error.to_string())?;
            position = position.or(Ok(at));
        }
        position
    }

    /// The device has stopped in order, and so have its recordings.
    pub(super) fn end_recordings(&self) {
        lock(&self.images)
            .iter()
            .filter_map(|image| image.recorder.as_ref())
            .for_each(|recorder| recorder.end());
    }

    /// Adds a logical unit.
    pub(super) fn hotplug(&self, config: &ImageConfig) -> Result<Address, Refusal> {
        let _in_span = self.span.enter();
        if self.config.kind != DeviceKind::VirtioScsi {
            return Err("only a virtio-scsi device (over vhost-user) takes more units".into());
        }
        config.check("hotplug", self.config.kind).map_err(|error| error.to_string())?;
        let _one_at_a_time = lock(&self.plugging);
        let taken: Vec<_> = lock(&self.images).iter().map(|image| image.address).collect();
        let free = |at: Address| !taken.contains(&at);
        let first_free = || (0..255).map(|lun| Address { target: 0, lun }).find(|&at| free(at));
        let address = config.lun.or_else(first_free).filter(|&at| free(at));
        let address = address.ok_or("that lun is in use; give another, such as lun=0:7")?;
        let image =
            Image::open(config, address, &self.held_requests).map_err(|error| format!("{error:#}"))?;
        let started = image.file.start(confined::io_thread).map_err(|error| error.to_string());
        let plugged =
            started.and_then(|()| self.controller.hotplug(image.lun()).map_err(|error| error.to_string()));
        plugged.inspect_err(|_| image.file.undo_size())?;
        lock(&self.images).push(image);
        tracing::info!(%address, image = %config.path.display(), "plugged");
        self.bus.publish(&Event::Plugged { device: self.name.clone(), lun: address.to_string() });
        Ok(address)
    }

    /// Removes a logical unit.
    pub(super) fn unplug(&self, address: Address) -> Result<(), Refusal> {
        let _in_span = self.span.enter();
        if self.config.kind != DeviceKind::VirtioScsi {
            return Err("only a virtio-scsi device (over vhost-user) gives units up".into());
        }
        let _one_at_a_time = lock(&self.plugging);
        if lock(&self.images).iter().all(|image| image.address != address) {
            return Err(format!("there is no lun {address}; blk-host ctl stats lists them"));
        }
        self.controller.unplug(address.target, address.lun).map_err(|error| error.to_string())?;
        // Dropped without the lock: the image's threads end with it.
        let mut images = lock(&self.images);
        let unplugged = images.iter().position(|image| image.address == address).map(|at| images.remove(at));
        drop(images);
        drop(unplugged);
        tracing::info!(%address, "unplugged");
        self.bus.publish(&Event::Unplugged { device: self.name.clone(), lun: address.to_string() });
        Ok(())
    }

    /// What has been done so far.
    pub(super) fn stats(&self) -> DeviceStats {
        let state = lock(&self.state).clone();
        DeviceStats {
            name: self.name.clone(),
            kind: self.config.kind,
            state,
            held: self.held_requests.held(),
            server: self.controller.stats(),
            images: lock(&self.images).iter().map(|image| image.report(self.config.kind)).collect(),
        }
    }

    /// Lets the client go that is connected.
    pub(super) fn disconnect(&self) {
        let _in_span = self.span.enter();
        tracing::info!("the client is let go by an operator's command");
        self.controller.disconnect();
    }

    /// What a command, or the end, waits for now.
    pub(super) fn waits_for(&self) -> String {
        let stats = self.controller.stats();
        match stats.queues.iter().map(|queue| u64::from(queue.in_flight)).sum::<u64>() {
            0 if stats.connected => "waits for its threads, its client or an image".into(),
            0 => "waits for an image, as for its lock or its flush".into(),
            1 => "waits for a request in flight".into(),
            requests => format!("waits for {requests} requests in flight"),
        }
    }

    /// Begins the end: what is held ends with its error, what is in flight completes, the images are flushed.
    pub(super) fn stop(&self) {
        self.held_requests.end();
        self.controller.stop();
    }
}

fn open_all(
    config: &DeviceConfig,
    held_requests: &Arc<HeldRequests>,
    images: &mut Vec<Image>,
) -> anyhow::Result<()> {
    for (index, image) in config.images.iter().enumerate() {
        images.push(Image::open(image, image.address(index), held_requests)?);
    }
    Ok(())
}

/// The server of a device over its images.
fn idle_server(config: &DeviceConfig, images: &[Image]) -> anyhow::Result<IdleServer> {
    let scsi = ScsiOptions { queues: config.queues, queue_size_max: config.queue_size };
    let blk = |image: &Image| BlkOptions {
        serial: image.config.serial.clone().unwrap_or_default(),
        queues: config.queues,
        queue_size_max: config.queue_size,
        read_only: image.config.readonly,
        ..BlkOptions::default()
    };
    let units = || images.iter().map(Image::lun).collect();
    let drives = || images.iter().map(Image::drive).collect();
    let handles = || images.iter().map(|image| image.backend.handle()).collect::<Result<Vec<_>, _>>();
    let name = config.kind.name();
    let (device, handles) = match (config.kind, images.first()) {
        (DeviceKind::VirtioBlk, Some(image)) => {
            return Ok(IdleServer::blk(&blk(image), Arc::clone(&image.backend))?);
        }
        (DeviceKind::VirtioScsi, _) => return Ok(IdleServer::scsi(&scsi, units())?),
        (DeviceKind::VirtioBlkPci, Some(image)) => {
            let queues = (0..config.queues).map(|_| image.backend.handle());
            (devices::virtio_blk(&blk(image))?, queues.collect::<Result<_, _>>()?)
        }
        (DeviceKind::VirtioScsiPci, _) => devices::virtio_scsi(&scsi, units())?,
        (DeviceKind::Ahci, _) => {
            let per_port = config.ahci_messages == AhciMessages::PerPort;
            (devices::ahci(drives(), per_port)?, handles()?)
        }
        (DeviceKind::Ide, _) => {
            let chip = match config.ide_chip {
                IdeChip::Piix3 => PciIdeChip::Piix3,
                IdeChip::Piix4 => PciIdeChip::Piix4,
            };
            let mode = match config.ide_mode {
                IdeMode::Native => PciIdeMode::Native,
                IdeMode::Compatibility => PciIdeMode::CompatibilityByPin,
            };
            (devices::ide(drives(), chip, mode)?, handles()?)
        }
        (_, None) => anyhow::bail!("no image for {name}"),
    };
    Ok(IdleServer::pci(name, device, handles)?)
}

impl Image {
    fn open(
        config: &ImageConfig,
        address: Address,
        held_requests: &Arc<HeldRequests>,
    ) -> anyhow::Result<Self> {
        let span = tracing::error_span!("image", path = %config.path.display());
        let _in_span = span.enter();
        image_check::check_format(config)?;
        let file = Arc::new(open::open(&config.path, &config.file_options())?);
        image_check::warn(config);
        Self::over(Arc::clone(&file), config, address, held_requests).inspect_err(|_| file.undo_size())
    }

    /// The layers over an open image.
    fn over(
        file: Arc<FileBackend>,
        config: &ImageConfig,
        address: Address,
        held_requests: &Arc<HeldRequests>,
    ) -> anyhow::Result<Self> {
        let mut backend: Arc<dyn Backend> = Arc::<FileBackend>::clone(&file);
        if let Some(plan) = config.faults()? {
            backend = Arc::new(Faulty::new(backend, plan));
        }
        let mut recorder = None;
        if let Some(path) = &config.record {
            // Read through threads that are gone before the process is confined.
            let reading = FileOptions { read_only: true, lock: false, size: None, ..config.file_options() };
            let reader = || Ok(Arc::new(FileBackend::open(&config.path, &reading)?) as Arc<dyn Backend>);
            let opened = Recorder::open_with(backend, reader, path.clone())?;
            let opened = Arc::new(opened.with_memory(config.file_options().private_bytes_max));
            recorder = Some(Arc::clone(&opened));
            backend = opened;
        }
        // Above the recorder, which tells what the host was given, and when. Below the error policy: a request that is tried again is
        // an operation again, and the latencies that the policy measures are those that the guest sees.
        let mut limiter = None;
        if let Some(limits) = config.limits()? {
            let throttled = Throttled::new(backend, limits);
            limiter = Some(Arc::clone(throttled.limiter()));
            backend = Arc::new(throttled);
        }
        let policy = ErrorPolicy { read: config.rerror, write: config.werror };
        let name = config.path.display().to_string();
        let policed = ErrorPolicyBackend::new(backend, policy, Arc::clone(held_requests), &name);
        let meters = Arc::clone(policed.meters());
        let flusher = Arc::new(Mutex::new(policed.handle()?));
        let (config, backend) = (config.clone(), Arc::new(policed));
        Ok(Self { config, address, file, backend, flusher, meters, limiter, recorder })
    }

    fn lun(&self) -> Lun {
        let serial = self.config.serial.as_deref().unwrap_or_default();
        Lun {
            target: self.address.target,
            lun: self.address.lun,
            config: scsi_model::Config::new("BLKHOST", "DISK", env!("CARGO_PKG_VERSION"), serial),
            backend: Arc::clone(&self.backend),
        }
    }

    fn drive(&self) -> DriveConfig {
        DriveConfig::new("BLKHOST DISK", self.config.serial.as_deref().unwrap_or_default())
    }

    fn report(&self, kind: DeviceKind) -> ImageReport {
        let info = self.backend.info();
        ImageReport {
            path: self.config.path.clone(),
            cache: self.config.cache.name().to_owned(),
            lun: kind.has_units().then_some(self.address),
            bytes: info.sectors.saturating_mul(u64::from(SECTOR_BYTES)),
            latched: self.backend.latched().map(|cause| format!("{cause:?}")),
            operations: self.meters.stats(),
            throttle: self.limiter.as_ref().map(ThrottleStats::of),
            budgets: self.file.budgets(),
            recording_memory: self.recorder.as_ref().map(|recorder| recorder.memory()),
            host: self.backend.counts(),
        }
    }
}

impl ImageConfig {
    fn file_options(&self) -> FileOptions {
        let defaults = FileOptions::new(self.cache);
        FileOptions {
            read_only: self.readonly,
            logical_block_bytes: self.logical_block,
            size: self.size.map(|size| size.0),
            workers: self.workers,
            engine: self.engine,
            in_flight_bytes_max: self.inflight.map_or(defaults.in_flight_bytes_max, |size| size.0),
            private_bytes_max: self.private_memory.map_or(defaults.private_bytes_max, |size| size.0),
            ..defaults
        }
    }
}

/// Flushes through a handle that nobody else uses: it covers what all handles have completed.
fn flush(handle: &mut dyn Handle) -> Result<(), Refusal> {
    use blk_core::op::Op;
    use blk_core::units::{GuestAddr, Tag};

    let memory =
        crate::memory::MappedMemory::anonymous(&[(GuestAddr(0), 4096)]).map_err(|e| e.to_string())?;
    // Somebody waits: it is not held back by a limit.
    handle.drain(true);
    let tag = Tag { slot: 0, generation: 0 };
    handle.submit(&memory, tag, Op::Flush, &[]).map_err(|_| "the image is busy".to_owned())?;
    loop {
        if let Some(completion) = handle.poll(&memory) {
            return completion
                .result
                .map_err(|error| format!("the flush failed ({:?}); check the image", error.kind));
        }
        if handle.arm() {
            let wake = handle.wake_fd();
            // A signal, or a spurious wake: looked at again.
            let _ = rustix::event::poll(
                &mut [rustix::event::PollFd::new(&wake, rustix::event::PollFlags::IN)],
                None,
            );
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.image, self.operation)?;
        if let Some(lba) = self.lba {
            write!(f, " at sector {lba}")?;
        }
        write!(f, ": {}", self.error)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
