"""The Kinesis Client Library as a supervised process: its settings, its slots, its keeper, and the record processor."""
