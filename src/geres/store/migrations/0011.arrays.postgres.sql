-- A server of the release before would make rows that start at once.  It takes this for an outage, and tries again
-- in vain until a newer server has made them.  Servers that know of waiting say so when they connect.
CREATE FUNCTION only_who_waits_unfolds() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF COALESCE(current_setting('geres.waits', true), '') = '' THEN
        RAISE EXCEPTION 'this array waits for others: a server of a newer release makes its tasks'
            USING ERRCODE = 'lock_not_available';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER job_only_who_waits_unfolds BEFORE UPDATE OF array_done ON job FOR EACH ROW
    WHEN (NEW.array_done > OLD.array_done AND NEW.spec LIKE '%"after":["%')
    EXECUTE FUNCTION only_who_waits_unfolds();
