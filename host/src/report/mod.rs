//! What Dunlin reports: the JSON documents of the command line, and their tables for people.
//!
//! Field names, units and meanings are a contract. Later versions add fields, never change or drop one.
#![forbid(unsafe_code)]

mod audit;
mod blocks;
pub mod chart;
pub mod html;
mod migration;
mod prediction;
mod prediction_table;
mod progress;
mod record;
mod schema;
mod similarity;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod trace;
mod trace_charts;
mod trace_table;
mod vm;

pub use audit::{audit_lines, audit_table};
pub use blocks::{ShadeMap, sparkline};
pub use migration::{
    ByteCounts, ChoiceReport, GuestImpact, HintReport, MigrationReport, Outcome, PostcopyReport, Predicted,
    RoundReport, SamplingReport, SwitchReport, Verification,
};
pub use prediction::{
    Costs, EndCount, EndName, Keeping, Likely, LinkPrediction, PredictionReport, Recommendation, StrategyPrediction,
};
pub use prediction_table::{prediction_chart, prediction_table};
pub use progress::Progress;
pub use record::{KernelReport, OverheadReport, RecordReport, record_summary};
pub use schema::{
    GuestSchema, MigrationSchema, PredictionSchema, ReceiveSchema, RecordSchema, RecordingSchema, ReportSchema,
    SimilaritySchema, StatusSchema,
};
pub use similarity::{SimilarPair, SimilarityReport, similarity_table};
pub use status::{RecordingStatus, State, Status, TrackingStatus};
pub(crate) use table::round_table;
pub use table::{Paint, migration_table, status_lines};
pub use text::{bytes, chain, count, duration, milli, rate};
pub use trace::{
    FirstTouchReport, HarvestReport, HeatReport, HotPage, HotReport, IntervalBucket, IntervalReport, LossReport,
    OrderBasis, OrderReport, RatePoint, RateReport, RateWindows, ResolutionName, SharingReport, StepsReport,
    TouchPoint, TraceOverhead, TraceReport, TracedGuest, VcpuShare, WorkloadReport, WwsPoint,
};
pub use trace_charts::{Figure, trace_charts};
pub use trace_table::trace_table;
pub use vm::{GuestReport, ReceiveReport};
