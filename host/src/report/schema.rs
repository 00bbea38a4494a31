//! The names by which a reader tells one JSON document from another.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

macro_rules! schema {
    ($(#[$doc:meta])* $name:ident = $text:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name;

        impl $name {
            /// The name as it stands in the document.
            pub const NAME: &str = $text;
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(Self::NAME)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let found = String::deserialize(deserializer)?;
                if found == Self::NAME {
                    Ok(Self)
                } else {
                    Err(D::Error::custom(format_args!("schema {found:?} where {:?} was expected", Self::NAME)))
                }
            }
        }
    };
}

schema! {
    /// Marks a [`MigrationReport`](super::MigrationReport).
    MigrationSchema = "dunlin.migration.v1"
}
schema! {
    /// Marks a [`Status`](super::Status).
    StatusSchema = "dunlin.status.v1"
}
schema! {
    /// Marks a [`GuestReport`](super::GuestReport).
    GuestSchema = "dunlin.guest.v1"
}
schema! {
    /// Marks a [`RecordingAnswer`](crate::control::RecordingAnswer).
    RecordingSchema = "dunlin.recording.v1"
}
schema! {
    /// Marks a [`RecordReport`](super::RecordReport).
    RecordSchema = "dunlin.record.v1"
}
schema! {
    /// Marks a [`ReceiveReport`](super::ReceiveReport).
    ReceiveSchema = "dunlin.receive.v1"
}
schema! {
    /// Marks a [`TraceReport`](super::TraceReport).
    ReportSchema = "dunlin.report.v1"
}
schema! {
    /// Marks a [`SimilarityReport`](super::SimilarityReport).
    SimilaritySchema = "dunlin.similarity.v1"
}
schema! {
    /// Marks a [`PredictionReport`](super::PredictionReport).
    PredictionSchema = "dunlin.prediction.v1"
}
