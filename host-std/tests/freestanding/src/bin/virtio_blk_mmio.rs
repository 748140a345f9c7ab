//! virtio-blk behind virtio-mmio.

#![no_std]
#![no_main]

use virtio_blk_model::device::Config;
use virtio_blk_model::front::Mmio;

freestanding::program!(Mmio<1, 64>, init: |_| Some(Mmio::new(Config::default())));
