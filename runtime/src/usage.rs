//! What this process costs, read from `/proc/self` when somebody asks: the customary `process_*` families.

use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// `/proc/self/stat` counts in units of 1/100 s on every Linux that we build for (USER_HZ, proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Registers `process_*` and `hawser_build_info`.
pub(crate) fn register(registry: &mut Registry, started: SystemTime) {
    registry.register_collector(Box::new(Usage { started }));
    let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("hawser_build", "The version that runs", build);
}

#[derive(Debug)]
struct Usage {
    started: SystemTime,
}

impl Collector for Usage {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let started = crate::clock::millis(self.started) / 1000;
        let gauges = [
            ("process_resident_memory", "Resident memory", Some(Unit::Bytes), resident_bytes()),
            ("process_open_fds", "Open file descriptors", None, open_files()),
            ("process_start_time", "Start time since the epoch", Some(Unit::Seconds), started),
        ];
        for (name, help, unit, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?)?;
        }
        let cpu = ConstCounter::new(cpu_seconds());
        let descriptor: MetricEncoder<'_> =
            encoder.encode_descriptor("process_cpu", "CPU time used", Some(&Unit::Seconds), cpu.metric_type())?;
        cpu.encode(descriptor)
    }
}

fn resident_bytes() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok()).unwrap_or(0) * 1024
}

fn open_files() -> i64 {
    // The directory that is being read is itself open.
    std::fs::read_dir("/proc/self/fd").map_or(0, |files| i64::try_from(files.count()).unwrap_or(0) - 1)
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name may hold spaces and brackets: fields are counted from the last bracket (proc(5)).
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0.0 };
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}
