//! The arguments of `serve` and `ctl`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use host_std::serve::config::{
    AhciMessages, Config, ConfigError, DeviceConfig, DeviceKind, IdeChip, IdeMode, LogFormat, Size,
};
use host_std::serve::spec::ImageSpec;

use super::sandbox::SandboxArgs;
use crate::number::whole;

const IMAGE_HELP: &str = "\
An image and its options, separated by commas; a comma in the path is written twice, and a file whose name looks like an option is
written ./NAME. A SIZE is in bytes, or has a unit: 10G and 10GiB are 10 * 1024^3 bytes, 10GB is 10 * 1000^3. Several images with virtio-scsi, ahci (image n is
at port n) and ide (primary master, primary slave, secondary master, secondary slave).

  cache=writeback|none|writethrough|directsync|unsafe   default: writeback
  readonly              refuse writes
  serial=TEXT           what the guest reads, 20 characters at most
  queues=N              request queues; virtio-blk has a thread for each
  rerror=report|stop|enospc, werror=report|stop|enospc
                        what a failed read or write leads to: an error in the guest, or a pause until `blk-host ctl resume`
                        (enospc: only if space ran out); default: rerror=report, werror=enospc
  engine=auto|threads|uring, workers=N    how the host is asked; default: auto
  logical-block=BYTES   a power of two from 512 to 65536
  size=SIZE             make the image, or extend it, to this size, for example 10G; an image is never made smaller
  format=raw            serve it although it begins like a qcow2, VMDK, VDI, VHDX or QED image
  lun=TARGET:UNIT       virtio-scsi: where it is found; default: 0:0, 0:1 and so on
  iops=N, bps=SIZE      most operations, most bytes a second, for all queues together, for example iops=500,bps=100M; 0: none yet,
                        but `blk-host ctl throttle` may set it
  iops-burst=N, bps-burst=SIZE    what may go at once after a rest; default: a tenth of a second's worth
  inflight=SIZE         most bytes of reads and writes in flight, for all queues together; what is beyond waits; default: 256M
  private-memory=SIZE   most memory for the data of requests whose own memory the client does not share; default: 256M
  state=auto|off|PATH   file of what devices remember beside the disk's contents; auto: IMAGE.state, if that can be made; default: off
  record=LOG            record what the host is given";

/// Serve disks by vhost-user, or by vfio-user as PCI devices: from options, one device; from a file, any number.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Make the device's vhost-user socket here.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Make the device's vfio-user socket here: for ahci, ide, virtio-blk-pci and virtio-scsi-pci.
    #[arg(long, value_name = "PATH", conflicts_with = "socket")]
    vfio_user: Option<PathBuf>,

    /// Take the device's socket, listening or connected, from the supervisor. With no socket named at all: LISTEN_FDS.
    #[arg(long, value_name = "N", conflicts_with_all = ["socket", "vfio_user"], value_parser = whole::<i32>(3..=i32::MAX), allow_negative_numbers = true)]
    fd: Option<i32>,

    /// What the guest sees.
    #[arg(long, value_enum, default_value_t = DeviceKind::VirtioBlk)]
    device: DeviceKind,

    /// Which IDE controller it is.
    #[arg(long, value_enum, value_name = "CHIP", default_value_t = IdeChip::Piix3)]
    ide_chip: IdeChip,

    /// How an IDE controller is found: by its BARs, or at the ports of old.
    #[arg(long, value_enum, value_name = "MODE", default_value_t = IdeMode::Native)]
    ide_mode: IdeMode,

    /// How an AHCI controller interrupts: by a message for each port, or by one as the oldest do.
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = AhciMessages::PerPort)]
    ahci_messages: AhciMessages,

    /// An image and its options: PATH[,cache=MODE,readonly,serial=TEXT,queues=N,...].
    #[arg(long = "image", value_name = "PATH[,OPTION...]", long_help = IMAGE_HELP)]
    images: Vec<String>,

    /// Read everything from a TOML file instead.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["socket", "vfio_user", "fd", "device", "ide_chip", "ide_mode", "ahci_messages", "images", "record", "fault", "once"])]
    config: Option<PathBuf>,

    /// Make a control socket here, for `blk-host ctl`.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Record what the host is given into this file, for `blk-host replay`. (With several images: record=LOG with each.)
    #[arg(long, value_name = "LOG")]
    record: Option<PathBuf>,

    /// Inject faults, for tests.
    #[arg(long, value_name = "SPEC", hide = true)]
    fault: Option<String>,

    /// Exit when the first client leaves.
    #[arg(long)]
    once: bool,

    /// The form of the log, on standard error. BLK_HOST_LOG filters it (for example: debug).
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,

    #[command(flatten)]
    sandbox: SandboxArgs,

    /// Print the lines that attach a guest, and exit. (They are printed at the start, too.)
    #[arg(long)]
    pub(crate) print_attach: bool,

    /// Print no lines that attach a guest.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl ServeArgs {
    /// What is to be served, and where that was given.
    pub(crate) fn config(&self) -> Result<(Config, String), ConfigError> {
        let (mut config, place) = match &self.config {
            Some(path) => (Config::load(path)?, path.display().to_string()),
            None => (self.one_device()?, "serve".to_owned()),
        };
        if self.control.is_some() {
            config.control.clone_from(&self.control);
        }
        if let Some(format) = self.log_format {
            config.log_format = format;
        }
        self.sandbox.apply(&mut config);
        Ok((config, place))
    }

    fn one_device(&self) -> Result<Config, ConfigError> {
        let error = |what: &str, remedy: &str| {
            Err(ConfigError { place: "serve".into(), what: what.into(), remedy: remedy.into() })
        };
        let specs: Vec<_> =
            self.images.iter().map(|text| ImageSpec::parse("--image", text)).collect::<Result<_, _>>()?;
        let mut queues = specs.iter().filter_map(|spec| spec.queues);
        let queues = match (queues.next(), queues.next()) {
            (Some(_), Some(_)) => {
                return error("queues is given twice", "give it with one image: the device has them");
            }
            (queues, _) => queues.unwrap_or(1),
        };
        let mut images: Vec<_> = specs.into_iter().map(|spec| spec.image).collect();
        match (images.as_mut_slice(), &self.record, &self.fault) {
            (_, None, None) => {}
            ([image], record, fault) => {
                image.record = record.clone().or_else(|| image.record.take());
                image.fault = fault.clone().or_else(|| image.fault.take());
            }
            _ => {
                return error(
                    "--record or --fault with several images",
                    "give each image record=LOG or fault=SPEC",
                );
            }
        }
        let kind = self.device;
        match (&self.socket, &self.vfio_user) {
            (Some(_), _) if kind.is_pci() => {
                return error(&format!("--socket with {}", kind.name()), "give --vfio-user PATH");
            }
            (_, Some(_)) if !kind.is_pci() => {
                let remedy = "give --socket PATH, or --device ahci, ide, virtio-blk-pci or virtio-scsi-pci";
                return error(&format!("--vfio-user with {}", kind.name()), remedy);
            }
            _ => {}
        }
        let device = DeviceConfig {
            name: None,
            kind,
            socket: self.socket.clone().or_else(|| self.vfio_user.clone()),
            fd: self.fd,
            queues,
            queue_size: 256,
            ide_chip: self.ide_chip,
            ide_mode: self.ide_mode,
            ahci_messages: self.ahci_messages,
            once: self.once,
            images,
        };
        Ok(Config { devices: vec![device], ..Config::default() })
    }
}

/// Ask or command a server by its control socket.
#[derive(Debug, Args)]
pub(crate) struct CtlArgs {
    /// The server's control socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,

    /// The device, where the server has several.
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,

    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: CtlCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CtlCommand {
    /// What the guest asked for, what the images did, how long it took.
    Stats,
    /// The same in OpenMetrics text, once: for a textfile collector.
    Metrics,
    /// Take no more requests of the guest.
    Pause,
    /// Take requests again, and try those again that an error held.
    Resume,
    /// Pause, wait until nothing is in flight, flush: the image is at rest until a resume.
    Drain,
    /// Tell the guest the image's new size, after extending it if one is given.
    Resize {
        /// Which image, from 0 on.
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<usize>(0..=usize::MAX))]
        image: usize,
        /// The size, or what is added: 2147483648, 20G, +1GiB, 20GB (powers of 1000).
        #[arg(value_name = "SIZE|+SIZE", allow_negative_numbers = true)]
        size: Option<SizeArg>,
    },
    /// Change an image's limits of rate, or print them: iops=N, bps=SIZE, iops-burst=N, bps-burst=SIZE; 0 lifts one.
    Throttle {
        /// Which image, from 0 on.
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<usize>(0..=usize::MAX))]
        image: usize,
        /// The limits; others stay as they are.
        #[arg(value_name = "LIMIT=VALUE")]
        limits: Vec<String>,
    },
    /// Write a note into the recording.
    Mark {
        /// The note.
        text: String,
    },
    /// Add a logical unit to a virtio-scsi host.
    Hotplug {
        /// The image and its options, as for `serve --image`.
        #[arg(value_name = "PATH[,OPTION...]")]
        image: String,
    },
    /// Remove a logical unit from a virtio-scsi host.
    Unplug {
        /// Where it is.
        #[arg(value_name = "TARGET:UNIT")]
        lun: String,
    },
    /// Let the client go that is connected: the next one may come.
    Disconnect,
    /// Print what happens, as it happens.
    Events,
}

/// A size, or what is to be added to one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SizeArg {
    To(u64),
    By(u64),
}

impl std::str::FromStr for SizeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('+') {
            Some(more) => more.parse().map(|Size(bytes)| Self::By(bytes)),
            None => text.parse().map(|Size(bytes)| Self::To(bytes)),
        }
    }
}
