//! Checks of what no single option shows, and of what a file may say although the command line refuses it.

use std::collections::HashSet;
use std::path::Path;

use super::{
    AhciMessages, Config, ConfigError, DeviceConfig, DeviceKind, IdeChip, IdeMode, ImageConfig, Size,
};
use crate::backend::{FileOptions, StatePlace};
use crate::fault::Plan;

impl Config {
    /// Checks what no single option shows. `place` is where they came from.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self, place: &str) -> Result<(), ConfigError> {
        if self.devices.is_empty() {
            return Err(ConfigError::new(place, "no device", "give at least one [[device]]"));
        }
        let (mut names, mut paths, mut fds) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (index, device) in self.devices.iter().enumerate() {
            let name = device.name(index);
            let place =
                if self.devices.len() == 1 { place.to_owned() } else { format!("{place}: device {name}") };
            if !names.insert(name.clone()) {
                return Err(ConfigError::new(
                    place,
                    "the name is used twice",
                    "give each device its own name",
                ));
            }
            if name.is_empty() {
                return Err(ConfigError::new(place, "name: is empty", "give one, or leave it out"));
            }
            let sockets = device.socket.iter().chain(self.control.iter().filter(|_| index == 0));
            let logs = device.images.iter().filter_map(|image| image.record.as_ref());
            for path in sockets.chain(logs) {
                if !paths.insert(path) {
                    let what = format!("{} is used twice", path.display());
                    return Err(ConfigError::new(place, what, "give each socket and recording its own path"));
                }
            }
            if let Some(fd) = device.fd.filter(|&fd| !fds.insert(fd)) {
                return Err(ConfigError::new(
                    place,
                    format!("fd {fd} is used twice"),
                    "give each device its own",
                ));
            }
            device.check(&place)?;
        }
        Ok(())
    }
}

impl DeviceConfig {
    fn check(&self, place: &str) -> Result<(), ConfigError> {
        let error = |what: String, remedy: &str| Err(ConfigError::new(place, what, remedy));
        if self.socket.is_some() && self.fd.is_some() {
            return error("both a socket and an fd".into(), "give one of them");
        }
        if self.socket.as_deref() == Some(Path::new("")) {
            return error("socket: is empty".into(), "give a path, such as socket = \"/run/disk.sock\"");
        }
        let queues_max = self.kind.queues_max();
        if queues_max == 1 && self.queues != 1 {
            return error(
                format!("queues={} with {}, which has no queues", self.queues, self.kind.name()),
                "leave it out",
            );
        }
        if !(1..=queues_max).contains(&self.queues) {
            let what = format!("queues={} is not possible", self.queues);
            return error(what, &format!("give 1 to {queues_max}"));
        }
        if self.ide_chip != IdeChip::Piix3 && self.kind != DeviceKind::Ide {
            return error(format!("ide-chip with {}", self.kind.name()), "leave it out, or serve ide");
        }
        if self.ide_mode != IdeMode::Native && self.kind != DeviceKind::Ide {
            return error(format!("ide-mode with {}", self.kind.name()), "leave it out, or serve ide");
        }
        if self.ahci_messages != AhciMessages::PerPort && self.kind != DeviceKind::Ahci {
            return error(format!("ahci-messages with {}", self.kind.name()), "leave it out, or serve ahci");
        }
        if !self.queue_size.is_power_of_two() || !(2..=1024).contains(&self.queue_size) {
            let what = format!("queue-size={} is not possible", self.queue_size);
            return error(what, "give a power of two from 2 to 1024");
        }
        if self.images.is_empty() {
            return error(
                "no image".into(),
                "give one: path = \"disk.img\" in [[device.image]], or --image disk.img",
            );
        }
        let (images_max, remedy) = self.kind.images_max();
        if self.images.len() > images_max {
            return error(format!("{} images", self.images.len()), remedy);
        }
        let mut addresses = HashSet::new();
        for (index, image) in self.images.iter().enumerate() {
            image.check(place, self.kind)?;
            if !addresses.insert(image.address(index)) {
                let what = format!("{}: lun {} is used twice", image.path.display(), image.address(index));
                return error(what, "give each image a lun of its own, such as lun=0:1");
            }
        }
        Ok(())
    }
}

impl ImageConfig {
    /// The faults to inject.
    pub(in crate::serve) fn faults(&self) -> Result<Option<Plan>, ConfigError> {
        let parse = |text: &String| {
            let place = format!("image {}: fault", self.path.display());
            text.parse()
                .map_err(|error| ConfigError::new(place, error, "see the documentation of host_std::fault"))
        };
        self.fault.as_ref().map(parse).transpose()
    }

    pub(in crate::serve) fn check(&self, place: &str, kind: DeviceKind) -> Result<(), ConfigError> {
        let place = format!("{place}: image {}", self.path.display());
        if self.path.as_os_str().is_empty() {
            return Err(ConfigError::new(place, "no file name", "give one, such as path = \"disk.img\""));
        }
        self.faults()?;
        self.limits()?;
        if !(1..=FileOptions::WORKERS_MAX).contains(&self.workers) {
            let what = format!("workers={} is not possible", self.workers);
            return Err(ConfigError::new(
                place,
                what,
                format!("give a whole number from 1 to {}", FileOptions::WORKERS_MAX),
            ));
        }
        if let Some(block) = self.logical_block
            && !(block.is_power_of_two() && (512..=65536).contains(&block))
        {
            let what = format!("logical-block={block} is not possible");
            return Err(ConfigError::new(place, what, "give a power of two from 512 to 65536"));
        }
        for (option, size) in [("inflight", self.inflight), ("private-memory", self.private_memory)] {
            if size == Some(Size(0)) {
                let what = format!("{option}=0 would let nothing through");
                return Err(ConfigError::new(place, what, "leave it out, or give a size, such as 64M"));
            }
        }
        let unit = u64::from(self.logical_block.unwrap_or(512));
        if let Some(Size(bytes)) = self.size.filter(|size| size.0 == 0 || !size.0.is_multiple_of(unit)) {
            let what = format!("size={} is not a multiple of {unit}, a block of the disk", Size(bytes));
            let possible = Size(bytes.max(1).checked_next_multiple_of(unit).unwrap_or(1 << 30));
            return Err(ConfigError::new(place, what, format!("give size={possible}, or another multiple")));
        }
        if self.lun.is_some() && !kind.has_units() {
            let what = format!("lun with {}", kind.name());
            return Err(ConfigError::new(place, what, "leave it out, or use virtio-scsi"));
        }
        if let Some(serial) = &self.serial
            && (serial.len() > 20 || !serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '))
        {
            let what = format!("serial={serial} is not possible");
            return Err(ConfigError::new(
                place,
                what,
                "give at most 20 letters, digits and other characters of ASCII",
            ));
        }
        if let (true, StatePlace::At(_)) = (self.readonly, self.state_place()) {
            return Err(ConfigError::new(
                place,
                "readonly with a file for state",
                "leave one of them out: what devices store has no place beside an image that is only read",
            ));
        }
        if self.readonly && (self.size.is_some() || self.record.is_some()) {
            let what = "readonly with size or record";
            return Err(ConfigError::new(
                place,
                what,
                "leave readonly out: neither does anything to an image that is only read",
            ));
        }
        Ok(())
    }
}
