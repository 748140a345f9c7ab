//! A device: a server over its images, and the operator's hand on both.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use ata_model::{PciIdeChip, PciIdeMode};
use blk_core::units::SECTOR_BYTES;
use serde::{Deserialize, Serialize};
use tracing::Span;

use super::config::{Address, AhciMessages, DeviceConfig, DeviceKind, IdeChip, IdeMode, ImageConfig};
use super::confined;
use super::error_policy::{Failure, HeldRequests};
use super::events::{Bus, Event};
use super::image::{Image, ImageReport, flush};
use super::throttle::{LimitChange, ThrottleStats};
use crate::confine::{self, Role};
use crate::mutex::lock;
use crate::server::vfio_user::devices;
use crate::server::{BlkOptions, Controller, IdleServer, ScsiOptions, Server, Stats};

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

/// Why an operator's command was not done.
pub(super) type Refusal = String;

/// A device that is served.
pub(super) struct Device {
    pub(super) name: String,
    pub(super) config: DeviceConfig,
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

/// A device whose threads have not been started.
pub(super) struct IdleDevice {
    pub(super) device: Arc<Device>,
    server: IdleServer,
    /// What the host fails.
    failures: Receiver<Failure>,
}

impl IdleDevice {
    /// Opens the images and makes the server.
    pub(super) fn open(name: String, config: DeviceConfig, bus: Arc<Bus>) -> anyhow::Result<Self> {
        // Of the highest level: whatever is logged names the device. Threads take the span over.
        let span = tracing::error_span!("device", name);
        let entered = span.clone().entered();
        let (sender, failures): (SyncSender<_>, _) = sync_channel(FAILURES);
        let held_requests = Arc::new(HeldRequests::new(sender));
        let mut images = Vec::new();
        let server = open_all(&config, &held_requests, &mut images)
            .and_then(|()| idle_server(&config, &images))
            .inspect_err(|_| images.iter().for_each(|image| image.file.undo_size()))?;
        drop(entered);
        let device = Device {
            name,
            config,
            span,
            controller: server.controller(),
            held_requests,
            pausing: Mutex::new(()),
            state: Mutex::new(State::Running),
            plugging: Mutex::new(()),
            images: Mutex::new(images),
            bus,
        };
        Ok(Self { device: Arc::new(device), server, failures })
    }

    /// Starts the threads.
    pub(super) fn start(self) -> anyhow::Result<(Server, Receiver<Failure>)> {
        let Self { device, server, failures } = self;
        let _in_span = device.span.enter();
        for image in lock(&device.images).iter() {
            let path = image.config.path.display();
            let _in_span = tracing::error_span!("image", %path).entered();
            image.file.start(confined::io_thread)?;
        }
        let server = server.start(|| confine::thread(Role::Queue))?;
        Ok((server, failures))
    }
}

impl Device {
    /// It is not to be served after all: images that it made or extended are as they were.
    pub(super) fn refuse(&self) {
        lock(&self.images).iter().for_each(|image| image.file.undo_size());
    }

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
            let image = nth(&images, image)?;
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
    pub(super) fn bytes(&self, image: usize) -> Result<u64, Refusal> {
        let images = lock(&self.images);
        let info = nth(&images, image)?.backend.info();
        Ok(info.sectors.saturating_mul(u64::from(SECTOR_BYTES)))
    }

    /// Changes the limits of an image. Returns what they are.
    pub(super) fn throttle(&self, image: usize, change: &LimitChange) -> Result<ThrottleStats, Refusal> {
        let _in_span = self.span.enter();
        let images = lock(&self.images);
        let image = nth(&images, image)?;
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

    /// The images that it has now.
    pub(super) fn image_configs(&self) -> Vec<ImageConfig> {
        lock(&self.images).iter().map(|image| image.config.clone()).collect()
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

fn nth(images: &[Image], image: usize) -> Result<&Image, Refusal> {
    let count = images.len();
    images.get(image).ok_or_else(|| format!("no image {image}: there are {count}, from 0 on"))
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
