//! Nouns and arithmetic: what the other rooms talk about. No I/O, no clock, no Pingora.

pub mod account;
pub mod api_key;
pub mod channel;
pub mod condition;
pub mod directory;
pub mod egress;
pub mod group;
pub mod ids;
pub mod journal;
pub mod mapping;
pub mod money;
pub mod platform;
pub mod price;
pub mod response;
pub mod secret;
pub mod subscription;
pub mod text;
pub mod usage_record;
pub mod user;
pub mod window;

pub use account::{Account, AccountStatus, AccountType, Credentials, Habits, MessageQueueMode};
pub use api_key::{ApiKey, ApiKeyStatus, KeyHash};
pub use channel::{
    BillingModelSource, Channel, ChannelPrice, ClassPrices, PriceInterval, PricingMode,
};
pub use condition::{Condition, ConditionKind, Conditions};
pub use directory::{Directory, Objects};
pub use egress::{EgressCredential, EgressError, EgressProxy, EgressScheme};
pub use group::{Group, GroupRules, SubscriptionType};
pub use ids::{AccountId, ApiKeyId, ChannelId, GroupId, SubscriptionId, UserId};
pub use journal::JournalPosition;
pub use mapping::ModelMapping;
pub use money::{Money, Multiplier};
pub use platform::Platform;
pub use response::ResponseBinding;
pub use secret::Secret;
pub use subscription::{Subscription, SubscriptionStatus};
pub use usage_record::{AttemptTrace, BillingType, Outcome, UsageRecord, UsageSource};
pub use user::{User, UserStatus};
pub use window::{KEY_WINDOWS, SUBSCRIPTION_WINDOWS, Window, WindowKind};
