//! An image of a device, with the layers over its file, and what an operator is told of it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ata_model::DriveConfig;
use blk_core::op::Op;
use blk_core::storage::Info;
use blk_core::units::{GuestAddr, SECTOR_BYTES, Tag};
use serde::{Deserialize, Serialize};

use super::config::{Address, DeviceKind, ImageConfig};
use super::error_policy::{ErrorPolicy, ErrorPolicyBackend, HeldRequests};
use super::image_check;
use super::meter::{ImageStats, Meters};
use super::open;
use super::throttle::ThrottleStats;
use crate::backend::{
    Backend, BudgetReport, BudgetUse, Counts, FileBackend, FileOptions, Handle, StatePlace,
};
use crate::fault::Faulty;
use crate::memory::MappedMemory;
use crate::record::Recorder;
use crate::server::Lun;
use crate::throttle::{Limiter, Throttled};

/// An open image: its file, and the layers over it.
pub(super) struct Image {
    pub(super) config: ImageConfig,
    pub(super) address: Address,
    /// What lies below all layers.
    pub(super) file: Arc<FileBackend>,
    pub(super) backend: Arc<dyn Backend>,
    /// For flushes of the operator's. Kept from the start: a user that the process has become may not be permitted to open the
    /// image.
    pub(super) flusher: Arc<Mutex<Box<dyn Handle>>>,
    meters: Arc<Meters>,
    pub(super) limiter: Option<Arc<Limiter>>,
    pub(super) recorder: Option<Arc<Recorder>>,
}

impl Image {
    pub(super) fn open(
        config: &ImageConfig,
        address: Address,
        held_requests: &Arc<HeldRequests>,
    ) -> anyhow::Result<Self> {
        let span = tracing::error_span!("image", path = %config.path.display());
        let _in_span = span.enter();
        image_check::check_format(config)?;
        let file = Arc::new(open::open(&config.path, &config.file_options())?);
        image_check::warn(config, bytes(file.info()));
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
            let state = StatePlace::Nowhere;
            let reading =
                FileOptions { read_only: true, lock: false, size: None, state, ..config.file_options() };
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

    pub(super) fn lun(&self) -> Lun {
        let serial = self.config.serial.as_deref().unwrap_or_default();
        Lun {
            target: self.address.target,
            lun: self.address.lun,
            config: scsi_model::Config::new("BLKHOST", "DISK", env!("CARGO_PKG_VERSION"), serial),
            backend: Arc::clone(&self.backend),
        }
    }

    pub(super) fn drive(&self) -> DriveConfig {
        DriveConfig::new("BLKHOST DISK", self.config.serial.as_deref().unwrap_or_default())
    }

    pub(super) fn report(&self, kind: DeviceKind) -> ImageReport {
        let info = self.backend.info();
        ImageReport {
            path: self.config.path.clone(),
            cache: self.config.cache.name().to_owned(),
            lun: kind.has_units().then_some(self.address),
            bytes: bytes(info),
            latched: self.backend.latched().map(|cause| format!("{cause:?}")),
            operations: self.meters.stats(),
            throttle: self.limiter.as_ref().map(ThrottleStats::of),
            budgets: self.file.budgets(),
            recording_memory: self.recorder.as_ref().map(|recorder| recorder.memory()),
            host: self.backend.counts(),
        }
    }
}

const fn bytes(info: Info) -> u64 {
    info.sectors.saturating_mul(SECTOR_BYTES as u64)
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
            state: self.state_place(),
            ..defaults
        }
    }

    /// Where the image's devices keep their records.
    pub(super) fn state_place(&self) -> StatePlace {
        match &self.state {
            None => StatePlace::Nowhere,
            Some(path) if path.as_os_str() == "off" => StatePlace::Nowhere,
            Some(path) if path.as_os_str() == "auto" => StatePlace::Beside,
            Some(path) => StatePlace::At(path.clone()),
        }
    }
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

/// Flushes through a handle that nobody else uses: it covers what all handles have completed.
pub(super) fn flush(handle: &mut dyn Handle) -> Result<(), String> {
    let memory = MappedMemory::anonymous(&[(GuestAddr(0), 4096)]).map_err(|e| e.to_string())?;
    // Somebody waits: it is not held back by a limit.
    handle.drain(true);
    let tag = Tag { slot: 0, generation: 0 };
    let submission = handle.submit(&memory, tag, Op::Flush, &[]);
    let mut ended = submission.map_err(|_| "the image is busy".to_owned())?.done();
    loop {
        ended = ended.or_else(|| handle.poll(&memory).map(|completion| completion.result));
        if let Some(result) = ended {
            return result.map_err(|error| format!("the flush failed: {}; check the image", error.kind));
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
